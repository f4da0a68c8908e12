"""What class names alone are worth: tags against labels, label maps from tags, and how the check of labels finds wrong ones.

    python benchmarks/tags.py --config my.toml --split val --work runs/tags [--heads cmpa.safetensors] [--crf] [--no-masks]

Labels and ground truth are opened for scoring, and labels for the check; tags and label maps see neither. One pass of the
encoders gives the scores of all taggers, a second one all label maps. Prints Markdown.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections import defaultdict
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ablation import seven_classes, workspace_of
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

from pipelines.config import read_config, read_recipe
from pipelines.datasets.base import Sample
from pipelines.datasets.image import load_image
from pipelines.evaluation.confusion import confusion_counts
from pipelines.evaluation.ground_truth import read_mask
from pipelines.evaluation.metrics import metrics_from_counts
from pipelines.execution.pool import process_pool, resolve_workers
from pipelines.method.composition import initial_cams, refined_cams
from pipelines.method.encoders import Blocks
from pipelines.method.evidence import Evidence
from pipelines.method.label_free import label_free_needs
from pipelines.method.label_maps import pseudo_mask
from pipelines.method.loading import FrozenModels
from pipelines.method.tagging import TAGGERS, tag_scores
from pipelines.ops.thresholds import calibrate, doubts, quality
from pipelines.options.stages import CamsOptions, RefineOptions, SuperpixelsOptions
from pipelines.options.tag import TagOptions
from pipelines.workdir.photos import load_unstored
from pipelines.workdir.settings import model_sources
from pipelines.workdir.workspace import Workspace
from ssr_cli.console import ConsoleProgress

SECTIONS = read_recipe("ssr")
SUPERPIXELS = SuperpixelsOptions(**SECTIONS["superpixels"])
REFINE = RefineOptions(**SECTIONS["refine"])
SHARES, SEEDS = (0.05, 0.1), (0, 1, 2)
Labels = tuple[int, ...]


def main() -> None:
    """Score all taggers, then all label maps, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="dataset, clip, dino and run sections")
    parser.add_argument("--work", type=Path, required=True, help="the scores are kept here")
    parser.add_argument("--split", help="default: that of the config")
    parser.add_argument("--heads", type=Path, help="alignment heads that have not seen the labels of this split")
    parser.add_argument("--crf", action="store_true", help="also score label maps behind the CRF")
    parser.add_argument("--no-masks", action="store_true", help="tags and the check of labels alone: no mask is opened")
    arguments = parser.parse_args()
    place = workspace_of(read_config(arguments.config)[0], arguments.work)
    if arguments.split:
        place = dataclasses.replace(place, dataset_options=place.dataset_options.model_copy(update={"split": arguments.split}))
    bench = Bench(place, arguments.heads)
    bench.tag()
    bench.print_tags()
    bench.plan()
    bench.print_check()
    if not arguments.no_masks:
        bench.masks(crf=arguments.crf)
        bench.print_masks()


class Bench:
    """Scores of one split, and the label maps that are made of them."""

    def __init__(self, place: Workspace, heads: Path | None) -> None:
        self.place, self.samples = place, list(place.dataset.samples)
        self.classes = len(place.dataset.classes.names)
        self.cams = CamsOptions(**SECTIONS["cams"]).model_copy(update={"ckpt": heads})
        self.plain = self.cams.model_copy(update={"ckpt": None})
        self.taggers = [name for name in TAGGERS if heads or name in ("dense", "cls")]
        needs = frozenset().union(*(label_free_needs(TagOptions(tagger=name), self.cams, REFINE) for name in self.taggers))
        models = FrozenModels(model_sources(place, needs, heads), torch.device("cpu"), place.run.precision)
        self.encoders = models.encoders(
            needs, Blocks(clip_attention=REFINE.clip_blocks, dino_attention=REFINE.dino_blocks), self.cams
        )
        self.labels = np.zeros((len(self.samples), self.classes), dtype=np.bool_)
        for row, sample in zip(self.labels, self.samples, strict=True):
            row[list(sample.labels)] = True
        self.rows: dict[str, list[Labels]] = {}
        self.counts: dict[tuple[str, str], Any] = defaultdict(lambda: 0)

    def tag(self) -> None:
        """Scores of every tagger, ``(photos, C)`` each, kept as one file."""
        kept = self.place.work / f"scores-{self.place.dataset.split}.npz"
        if not kept.is_file():
            found: dict[str, list[NDArray[np.float32]]] = {name: [] for name in self.taggers}
            for evidence in self._evidence("tag"):
                for name in self.taggers:
                    cams = self.plain if name in ("dense", "cls") else self.cams
                    found[name].append(tag_scores(evidence, cams, TagOptions(tagger=name)).numpy()[0])
            kept.parent.mkdir(parents=True, exist_ok=True)
            np.savez(kept, **{name: np.array(rows) for name, rows in found.items()})
        self.scores: dict[str, NDArray[np.float32]] = dict(np.load(kept))

    def print_tags(self) -> None:
        """mAP, and F1, precision and recall at the default threshold and at one chosen on these labels."""
        print(f"\n{len(self.samples)} photos, {self.labels.sum()} labels of {self.classes} classes\n")
        print("| tagger | mAP | threshold | F1 | P | R | F1 at the best one | F1, own of each class |")
        print("|---|---|---|---|---|---|---|---|")
        for name, scores in self.scores.items():
            there = np.flatnonzero(self.labels.any(axis=0))
            ranked = np.mean([average_precision_score(self.labels[:, index], scores[:, index]) for index in there])
            threshold = TAGGERS[name].default_threshold(self.classes)
            found = quality(scores >= threshold, self.labels)
            best, own = (quality(scores >= calibrate(scores, self.labels, each), self.labels) for each in (False, True))
            numbers = (found.f1, found.precision, found.recall, best.f1, own.f1)
            print(f"| {name} | {ranked:.3f} | {threshold:.2f} | " + " | ".join(f"{number:.3f}" for number in numbers) + " |")

    def plan(self) -> None:
        """Which labels every row of the label maps has, photo by photo."""
        self._row("true labels", self.labels)
        for name in ("dense", "heads") if "heads" in self.scores else ("dense",):
            self._row(f"tags, {name}", self.scores[name] >= TAGGERS[name].default_threshold(self.classes))
        self.found: dict[tuple[str, str, float], list[tuple[float, float, float]]] = defaultdict(list)
        for kind in ("replaced", "removed or added"):
            for share in SHARES:
                for seed in SEEDS:
                    wrong, flips = flipped(self.labels, share, seed, kind)
                    for tagger in self.scores.keys() & {"dense", "heads"}:
                        scores = self.scores[tagger]
                        order = np.argsort(-doubts(scores, wrong, calibrate(scores, wrong, own=True)), axis=None)
                        first = {int(pair) for pair in order[: max(1, round(0.1 * wrong.sum()))]}
                        twice = {int(pair) for pair in order[: max(1, round(0.2 * wrong.sum()))]}
                        hits = len(first & {pair for pairs in flips for pair in pairs})
                        caught = [np.mean([bool(listed & set(pairs)) for pairs in flips]) for listed in (first, twice)]
                        self.found[tagger, kind, share].append((hits / len(first), float(caught[0]), float(caught[1])))
                        mended = wrong.copy()
                        places = np.array(sorted(first))
                        mended.flat[places] = self.labels.flat[places]  # a person who looks at the list is right
                        if kind == "replaced" and tagger == "dense":
                            self._row(f"{share:.0%} {kind}, seed {seed}", wrong)
                            self._row(f"{share:.0%} {kind}, seed {seed}, list looked through", mended)

    def print_check(self) -> None:
        """What the first pairs of the list hold."""
        print(
            "\n| scores | labels changed | first 10 %: precision | flips found | flips found in 20 % |\n|---|---|---|---|---|"
        )
        for (tagger, kind, share), rows in sorted(self.found.items()):
            cells = [f"{100 * np.mean(c):.0f} ({100 * min(c):.0f} to {100 * max(c):.0f})" for c in zip(*rows, strict=True)]
            print(f"| {tagger} | {share:.0%} {kind} | {' | '.join(cells)} |")

    def masks(self, *, crf: bool) -> None:
        """Count confusions of every row; equal labels of a photo are made once."""
        main_rows = {name for name in self.rows if has_crf(name)}
        with process_pool(resolve_workers(self.place.run.workers)) as pool:
            waiting: list[tuple[str, Future[dict[str, NDArray[np.int64]]]]] = []
            for number, evidence in enumerate(self._evidence("label maps")):
                made: dict[tuple[Labels, bool], Future[dict[str, NDArray[np.int64]]]] = {}
                for through in (False, True) if self.cams.ckpt else (False,):
                    for name in self.rows if not through else main_rows:
                        key = (self.rows[name][number], through)
                        if key not in made:
                            made[key] = pool.submit(_count, self._job(number, evidence, *key, crf=crf and name in main_rows))
                        waiting.append((f"{name}; through heads" if through else name, made[key]))
                while len(waiting) > 400:
                    self._add(waiting.pop(0))
            for each in waiting:
                self._add(each)

    def print_masks(self) -> None:
        """mIoU of all rows."""
        names = self.place.dataset.classes.label_map_names
        print("\n| labels | refined | + CRF |\n|---|---|---|")
        for name in dict.fromkeys(name for name, _ in self.counts):
            cells = []
            for stage in ("refined", "crf"):
                counts = self.counts.get((name, stage))
                metrics = None if counts is None else metrics_from_counts(counts, names)
                cells.append("" if metrics is None else f"{100 * metrics.miou:.2f}{seven_classes(metrics)}")  # type: ignore[arg-type]
            print(f"| {name} | {' | '.join(cells)} |")

    def _row(self, name: str, labels: NDArray[np.bool_]) -> None:
        self.rows[name] = [tuple(np.flatnonzero(row).tolist()) for row in labels]

    def _evidence(self, title: str) -> Any:
        progress = ConsoleProgress()
        progress.start(title, len(self.samples))
        with process_pool(1) as pool:
            for sample in self.samples:
                yield self.encoders.encode([load_unstored(self.encoders, pool, SUPERPIXELS, sample)])
                progress.advance()
        progress.finish()

    def _job(self, number: int, evidence: Evidence, labels: Labels, through: bool, *, crf: bool) -> _Job:
        fields = {name: value for name, value in vars(evidence).items() if through or name != "alignment"}
        batch = Evidence(**{**fields, "labels": (labels,)})
        refined = np.zeros((0, *batch.grid), dtype=np.float16)
        if labels:
            maps = initial_cams(batch, self.cams if through else self.plain).half().float()  # (K, N)
            refined = refined_cams(batch, maps, REFINE).view(-1, *batch.grid).numpy().astype(np.float16)
        mask = self.place.dataset.mask_path(self.samples[number].image_id)
        assert mask is not None
        return _Job(self.samples[number], mask, labels, refined, crf, self.classes + 1)

    def _add(self, waiting: tuple[str, Future[dict[str, NDArray[np.int64]]]]) -> None:
        for stage, counts in waiting[1].result().items():
            if stage == "refined" or has_crf(
                waiting[0]
            ):  # equal labels share maps, so other rows would have a CRF now and then
                self.counts[waiting[0], stage] += counts


def has_crf(row: str) -> bool:
    """Whether a row of the label maps is scored behind the CRF, too: true labels and tags."""
    return row.startswith("t")


def flipped(labels: NDArray[np.bool_], share: float, seed: int, kind: str) -> tuple[NDArray[np.bool_], list[tuple[int, ...]]]:
    """Labels of which a share was changed, and the flat places of each change.

    Args:
        labels: ``(photos, C)``.
        share: Of the labels.
        seed: Of the draw.
        kind: ``replaced`` by a class that is not there, or ``removed or added`` in turn.
    """
    draw, out = np.random.default_rng(seed), labels.copy()
    pairs = np.argwhere(labels)
    flips = []
    for number, (photo, index) in enumerate(pairs[draw.choice(len(pairs), max(1, round(share * len(pairs))), replace=False)]):
        places = []
        if kind == "replaced" or number % 2:
            out[photo, index] = False
            places.append((photo, index))
        if kind == "replaced" or not number % 2:
            other = draw.choice(np.flatnonzero(~labels[photo] & ~out[photo]))
            out[photo, other] = True
            places.append((photo, other))
        flips.append(tuple(int(row * labels.shape[1] + column) for row, column in places))
    return out, flips


@dataclasses.dataclass(frozen=True)
class _Job:
    sample: Sample
    mask: Path
    labels: Labels
    refined: NDArray[np.float16]
    crf: bool
    classes: int


def _count(job: _Job) -> dict[str, NDArray[np.int64]]:
    """Confusions of one photo, without and with the CRF."""
    target, found = read_mask(job.mask), {}
    for stage in ("refined", "crf") if job.crf else ("refined",):
        options = REFINE.model_copy(update={"boundary": "crf" if stage == "crf" else "none"})
        mask, _ = pseudo_mask(job.refined, job.labels, target.shape, options, lambda: load_image(job.sample.image_path))
        found[stage] = confusion_counts(mask, target, job.classes)
    return found


if __name__ == "__main__":
    main()
