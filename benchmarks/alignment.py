"""CMPA with and without: seeds, read-outs, the losses of the paper's Table 4, and what each of our changes brings.

    python benchmarks/alignment.py --config my.toml --train train_aug --score train val --work runs/alignment \
        [--images even=FILE.txt ...] [--rows NAME ...] [--crf]

Heads learn from the image-level labels of one split; ground truth is opened for scoring alone. One pass of the encoders over
the photos that are scored serves all rows. Prints Markdown.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ablation import seven_classes, workspace_of
from numpy.typing import NDArray
from tags import flipped

from pipelines.config import read_config, read_recipe
from pipelines.datasets.base import Sample
from pipelines.datasets.image import load_image
from pipelines.datasets.label_files import write_label_file
from pipelines.datasets.splits import read_split
from pipelines.evaluation.confusion import confusion_counts
from pipelines.evaluation.ground_truth import read_mask
from pipelines.evaluation.metrics import metrics_from_counts
from pipelines.execution.devices import resolve_device
from pipelines.execution.pool import process_pool, resolve_workers
from pipelines.method.aligned import AlignedText
from pipelines.method.composition import initial_cams, refined_cams
from pipelines.method.encoders import Blocks
from pipelines.method.evidence import Evidence, Needs, TextFeatures
from pipelines.method.label_maps import pseudo_mask
from pipelines.method.loading import FrozenModels
from pipelines.method.parts_in_use import cam_needs, refine_needs
from pipelines.method.readouts import READOUTS, Readout
from pipelines.models.alignment_file import Alignment
from pipelines.ops.label_map import label_map, resize_maps, with_background
from pipelines.options.align import AlignOptions
from pipelines.options.stages import CamsOptions, RefineOptions, SuperpixelsOptions
from pipelines.stages import superpixels
from pipelines.stages.align.inputs import AlignInputs
from pipelines.stores.array_store import ArrayReader
from pipelines.training.alignment import AlignmentTrainer
from pipelines.training.alignment_data import AlignmentData
from pipelines.workdir.settings import model_sources
from pipelines.workdir.workspace import Workspace
from ssr_cli.console import ConsoleProgress

CAMS = CamsOptions(**read_recipe("ssr")["cams"])
REFINE = RefineOptions(**read_recipe("ssr")["refine"])
CLIP_ES = RefineOptions(**read_recipe("clip-es")["refine"])
POWERS = (1, 2, 3, 4, 6)
UNGUARDED = {"few_photos": 0.0, "min_average_precision": 0.0}
AS_WRITTEN = {"aligned_readout": "gradcam", "aligned_layer": "ln_1", "aligned_relu": True, **UNGUARDED}
POOLED_ONLY = {"token_contrast": 0.0, "background": 0.0, "cam_power": 1.0, "cooccurrence": 0.0}


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        align: Changes to ``[align]``; None: plain CLIP.
        cams: Changes to ``[cams]`` of recipe ssr.
        refine: How its CAM is refined.
        crf: Also score with the CRF.
        photos: Of each class, about so many photos train the heads; None: all.
        wrong: Share of the training labels that is replaced by a class that is not there.
    """

    align: dict[str, Any] | None = None
    cams: dict[str, Any] = dataclasses.field(default_factory=dict)
    refine: RefineOptions = REFINE
    crf: bool = False
    photos: int | None = None
    wrong: float = 0.0


def masked(**values: Any) -> Row:
    """Aligned CAMs behind another column mask."""
    return Row({}, refine=REFINE.model_copy(update=values), crf=True)


ROWS: dict[str, Row] = {
    "clip-es": Row(cams={"readout": "gradcam"}, refine=CLIP_ES, crf=True),
    "ssr, plain CLIP": Row(crf=True),
    **{f"ssr, aligned, seed {seed}": Row({"seed": seed}, crf=True) for seed in (0, 1, 2)},
    **{f"no co-occurrence, seed {seed}": Row({"seed": seed, "cooccurrence": 0.0}, crf=True) for seed in (0, 1, 2)},
    **{f"{count} photos a class": Row({}, crf=True, photos=count) for count in (5, 10, 20, 40)},
    **{f"{n} photos a class, 6 epochs": Row({"min_iterations": 0}, crf=True, photos=n) for n in (5, 10, 20, 40)},
    **{f"{100 * share:.0f} % wrong labels": Row({}, crf=True, wrong=share) for share in (0.05, 0.1)},
    "no mask": masked(superpixel_mask="none"),
    "box": masked(superpixel_mask="none", box_mask=True),
    "SGC as written": masked(superpixel_mask="colour", clusters=5, mask_threshold=0.03),
    "token mask": masked(superpixel_mask="token", mask_threshold=0.15),
    "gate": masked(superpixel_mask="gate"),
    "two propagation steps": Row({}, refine=REFINE.model_copy(update={"power": 2}), crf=True),
    "ssr, plain CLIP, two steps": Row(refine=REFINE.model_copy(update={"power": 2}), crf=True),
    "constant learning rate": Row({"final_rate": 1.0}, crf=True),
    "read-out gradcam": Row({}, {"aligned_readout": "gradcam"}),
    "read-out mix": Row({}, {"aligned_readout": "mix"}),
    "read-out gradcam at ln_1": Row({}, {**AS_WRITTEN, "aligned_relu": False}),
    "value features, gradcam at ln_1": Row({"features": "value"}, {**AS_WRITTEN, "aligned_relu": False}),
    "value features, gradcam at ln_1, ReLU": Row({"features": "value"}, AS_WRITTEN),
    "scale 30, superpixel share 0.5": Row({}, {"aligned_scale": 30.0, "aligned_superpixel_share": 0.5}),
    "fallback by photos alone": Row({}, {"min_average_precision": 0.0}),
    "no fallback": Row({}, UNGUARDED),
    "no patch contrast": Row({"token_contrast": 0.0}),
    "no background term": Row({"background": 0.0}),
    "not residual": Row({"residual": False}),
    "k-means prototypes": Row({"prototypes": "kmeans"}),
    "separation 1": Row({"separation": 1.0}),
    "text noise 0.5": Row({"text_noise": 0.5}),
    "learned temperature": Row({"learn_temperature": True}, {"aligned_scale": None}),
    "pooled by the initial CAM": Row({"cam": "initial"}),
    "12 epochs": Row({"epochs": 12.0}),
    "direct": Row({**POOLED_ONLY, "loss": "direct"}, UNGUARDED),
    "intra": Row({**POOLED_ONLY, "loss": "intra"}, UNGUARDED),
    "cross": Row(POOLED_ONLY, UNGUARDED),
    "direct, gradcam as written": Row({**POOLED_ONLY, "loss": "direct"}, AS_WRITTEN),
    "intra, gradcam as written": Row({**POOLED_ONLY, "loss": "intra"}, AS_WRITTEN),
    "cross, gradcam as written": Row(POOLED_ONLY, AS_WRITTEN),
}


def main() -> None:
    """Train every row's heads, score every row, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="dataset, clip and dino sections")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--train", default="train_aug", help="split whose labels the heads learn from")
    parser.add_argument("--score", nargs="+", default=["train", "val"], help="splits with ground truth")
    parser.add_argument("--images", action="append", default=[], metavar="NAME=FILE.txt", help="also score these ids")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS), metavar="NAME")
    parser.add_argument("--crf", action="store_true", help="also score the main rows with the CRF")
    arguments = parser.parse_args()
    values, _ = read_config(arguments.config)
    values["dataset"]["split"] = arguments.train
    base = workspace_of(values, arguments.work / "train")
    rows = {name: ROWS[name] for name in arguments.rows}
    bench = Bench(base, rows)
    scored: dict[str, list[Sample]] = {}
    places: dict[str, Workspace] = {}
    for split in arguments.score:
        place = dataclasses.replace(
            base,
            work=arguments.work / f"score-{Path(split).stem}",
            dataset_options=base.dataset_options.model_copy(update={"split": split}),
        )
        superpixels.run(place, SuperpixelsOptions(**read_recipe("ssr")["superpixels"]), ConsoleProgress())
        scored[split] = list(place.dataset.samples)
        places |= dict.fromkeys((sample.image_id for sample in scored[split]), place)
    samples = {sample.image_id: sample for found in scored.values() for sample in found}
    subsets = {split: {sample.image_id for sample in found} for split, found in scored.items()}
    subsets |= {name: set(read_split(Path(file))) for name, file in (entry.split("=", 1) for entry in arguments.images)}
    bench.score(samples, places, subsets, crf=arguments.crf)
    bench.print(list(subsets))


class Bench:
    """Heads of every row, and their counts."""

    def __init__(self, base: Workspace, rows: dict[str, Row]) -> None:
        self.base, self.rows = base, rows
        self.device = resolve_device(base.run.device)
        self.needs: Needs = frozenset().union(
            *(cam_needs(CAMS.model_copy(update=row.cams)) | refine_needs(row.refine) for row in rows.values())
        ) | {"tokens_cls", "text"}
        self.sources = model_sources(base, self.needs, None)
        self.models = FrozenModels(self.sources, self.device, base.run.precision)
        self.text = self.models.embeddings
        self.names = base.dataset.classes.label_map_names
        self.heads: dict[str, Alignment | None] = {}
        self.data: dict[Any, AlignmentData] = {}
        superpixels.run(base, SuperpixelsOptions(**read_recipe("ssr")["superpixels"]), ConsoleProgress())
        trained: dict[tuple[AlignOptions, int | None, float], Alignment] = {}
        for name, row in rows.items():
            self.heads[name] = None
            if row.align is not None:
                key = AlignOptions(**row.align), row.photos, row.wrong
                if key not in trained:
                    trained[key] = self._train(name, *key)
                self.heads[name] = trained[key]
        self.counts: dict[tuple[str, str, str], Any] = defaultdict(lambda: 0)

    def _train(self, name: str, options: AlignOptions, photos_a_class: int | None, wrong: float) -> Alignment:
        # one folder a kind of patch: patches are collected once for all rows that read the same
        folder = f"{options.cam}-{options.features}" + (f"-wrong-{wrong:g}" if wrong else "")
        place = dataclasses.replace(self.base, work=self.base.work / folder)
        place.work.mkdir(exist_ok=True)
        if wrong:
            labels = self.base.dataset_options.model_copy(update={"labels": wrong_labels(self.base, place.work, wrong)})
            place = dataclasses.replace(place, dataset_options=labels)
        for file in ("superpixels.h5", "superpixels.json"):
            if not (place.work / file).exists():
                (place.work / file).symlink_to((self.base.work / file).absolute())
        collected = options.model_copy(update={"cooccurrence": options.cooccurrence or AlignOptions().cooccurrence})
        data = self._data(AlignInputs(place, collected, CAMS, REFINE, self.sources), photos_a_class, wrong)
        if not options.cooccurrence:
            data = dataclasses.replace(data, unknown=None)
        trainer = AlignmentTrainer(data, self.text.all, len(self.text.classes), options, self.device)
        trainer.refresh()
        before, started = trainer.quality(), time.monotonic()
        for _ in trainer.steps():
            pass
        seconds, after = time.monotonic() - started, trainer.quality()
        print(
            f"{name}: {trainer.iterations} steps in {seconds:.1f} s ({1000 * seconds / trainer.iterations:.0f} s per 1,000), "
            f"loss {after.loss:.3f}, purity {before.purity:.3f} -> {after.purity:.3f}, "
            f"within {before.within:.3f} -> {after.within:.3f}, between {before.between:.3f} -> {after.between:.3f}",
            flush=True,
        )
        photos = torch.bincount(data.classes, minlength=len(self.text.classes))
        heads = trainer.heads.eval().requires_grad_(False)
        return Alignment(heads, options.features, photos, trainer.average_precision(), trainer.prototypes.image)

    def _data(self, inputs: AlignInputs, photos_a_class: int | None, wrong: float) -> AlignmentData:
        options = inputs.options
        key = options.cam, options.features, options.tokens, options.cooccurrence, options.neighbours, photos_a_class, wrong
        if key not in self.data:
            inputs.collect(lambda: self.models, ConsoleProgress())
            samples = inputs.collected()
            self.data[key] = inputs.data(samples if photos_a_class is None else few(samples, photos_a_class), self.device)
        return self.data[key]

    def score(
        self, samples: dict[str, Sample], places: dict[str, Workspace], subsets: dict[str, set[str]], *, crf: bool
    ) -> None:
        """Count confusions of every row over all samples."""
        text = TextFeatures(self.text.all.to(self.device), len(self.text.classes), self.models.clip.logit_scale)
        rows = {
            name: (options := CAMS.model_copy(update=row.cams), alignment and AlignedText(alignment, text, options), row.refine)
            for name, row in self.rows.items()
            for alignment in (self.heads[name],)
        }
        blocks = Blocks(clip_attention=REFINE.clip_blocks, dino_attention=REFINE.dino_blocks)
        encoders = self.models.encoders(self.needs, blocks)
        for name, part in list(READOUTS.items()):
            READOUTS[name] = dataclasses.replace(part, call=PlainMaps(part.call))
        readers = {place.work: ArrayReader(place.superpixels) for place in places.values()}
        progress = ConsoleProgress()
        progress.start("score", len(samples))
        with process_pool(resolve_workers(0)) as pool:
            waiting = []
            for image_id, sample in samples.items():
                place = places[image_id]
                photo = encoders.photo(sample, load_image(sample.image_path), readers[place.work].read(image_id)[0])
                evidence = encoders.encode([photo])
                for name, (cam_options, aligned, refine_options) in rows.items():
                    batch = evidence if aligned is None else evidence.replacing(alignment=aligned)
                    maps = initial_cams(batch, cam_options)  # (K, N)
                    cam, refined = _half(maps, photo.grid), _half(refined_cams(batch, maps, refine_options), photo.grid)
                    row = self.rows[name]
                    job = _Job(
                        sample, place.dataset.mask_path(image_id), cam, refined, row.refine, crf and row.crf, len(self.names)
                    )
                    waiting.append((name, image_id, pool.submit(_count, job)))
                waiting = self._gather(waiting, subsets, keep=64)
                progress.advance()
            self._gather(waiting, subsets, keep=0)
        progress.finish()

    def _gather(self, waiting: list[Any], subsets: dict[str, set[str]], keep: int) -> list[Any]:
        while len(waiting) > keep:
            name, image_id, future = waiting.pop(0)
            for key, counts in future.result().items():
                for subset, ids in subsets.items():
                    if image_id in ids:
                        self.counts[name, subset, key] += counts
        return waiting

    def print(self, subsets: list[str]) -> None:
        """The tables in Markdown."""
        for subset in subsets:
            print(f"\n**{subset}** (mIoU / 7cls)\n")
            print("| row | CAM, p = 1 | CAM, oracle p | refined | + CRF | P / R / FP:TP refined |")
            print("|---|---|---|---|---|---|")
            for name in self.rows:
                found = {
                    key: metrics_from_counts(c, self.names)
                    for (n, s, key), c in self.counts.items()
                    if (n, s) == (name, subset)
                }
                best = max((f"cam {p}" for p in POWERS), key=lambda key: found[key].miou)
                refined = found["refined"]
                quality = (
                    f"{100 * (refined.precision or 0):.1f} / {100 * refined.recall:.1f} / {refined.confusion_ratio or 0:.3f}"
                )
                cells = [_cell(found["cam 1"]), f"{_cell(found[best])} ({best[4:]})", _cell(refined)]
                print(f"| {name} | {' | '.join(cells)} | {_cell(found['crf']) if 'crf' in found else ''} | {quality} |")
            print()
            for name in self.rows:
                iou = metrics_from_counts(self.counts[name, subset, "refined"], self.names).per_class_iou
                print(f"{name}: " + ", ".join(f"{key} {100 * value:.1f}" for key, value in iou.items() if value is not None))


def wrong_labels(base: Workspace, folder: Path, share: float) -> Path:
    """A label file in which a share of the labels is replaced, drawn with seed 0."""
    samples, classes = base.dataset.samples, base.dataset.classes
    labels = np.zeros((len(samples), len(classes.names)), bool)
    for row, sample in enumerate(samples):
        labels[row, list(sample.labels)] = True
    changed, _ = flipped(labels, share, 0, "replaced")
    path = folder / "labels.csv"
    rows = {sample.image_id: np.flatnonzero(row).tolist() for sample, row in zip(samples, changed, strict=True)}
    write_label_file(path, rows, classes)
    return path


def few(samples: Sequence[Sample], photos_a_class: int) -> list[Sample]:
    """Photos, in an order of chance, as long as one of their classes has too few and none half as many again."""
    counts: dict[int, int] = defaultdict(int)
    kept = []
    for index in np.random.default_rng(0).permutation(len(samples)):
        labels = samples[index].labels
        if any(counts[label] < photos_a_class for label in labels) and all(
            counts[label] < 1.5 * photos_a_class for label in labels
        ):
            kept.append(samples[index])
            for label in labels:
                counts[label] += 1
    return kept


class PlainMaps:
    """Plain CLIP's read-outs, each made once a photo for all rows that read it.

    Args:
        readout: The entry of `READOUTS` that is called.
    """

    def __init__(self, readout: Readout) -> None:
        self.readout = readout
        self.photo: torch.Tensor | None = None
        self.maps: dict[str, torch.Tensor] = {}

    def __call__(self, evidence: Evidence, options: CamsOptions) -> torch.Tensor:
        """Maps of all classes, whether asked for or not."""
        if self.photo is not evidence.tokens_cls:
            self.photo, self.maps = evidence.tokens_cls, {}
        key = repr(options.model_copy(update={"ckpt": None}))
        if key not in self.maps:
            everything = Evidence(**{k: v for k, v in vars(evidence).items() if k != "asked"})
            self.maps[key] = self.readout(everything, options)
        return self.maps[key]


def _half(maps: torch.Tensor, grid: tuple[int, int]) -> NDArray[np.float16]:
    """Maps ``(K, N)`` as the stores hold them, ``(K, h, w)``."""
    return maps.view(-1, *grid).cpu().numpy().astype(np.float16)


def _cell(metrics: Any) -> str:
    return f"{100 * metrics.miou:.2f}{seven_classes(metrics)}"


@dataclasses.dataclass(frozen=True)
class _Job:
    sample: Sample
    mask: Path
    cam: NDArray[np.float16]
    refined: NDArray[np.float16]
    refine: RefineOptions
    crf: bool
    classes: int


def _count(job: _Job) -> dict[str, NDArray[np.int64]]:
    """Confusions of one photo: the CAM at every p, the refined CAM, and the CRF of it."""
    target = read_mask(job.mask)
    labels, found = job.sample.labels, {}
    maps = resize_maps(job.cam, target.shape)  # (K, H, W)
    for power in POWERS:
        found[f"cam {power}"] = confusion_counts(label_map(with_background(maps, power), labels), target, job.classes)
    maps = resize_maps(job.refined, target.shape)
    predicted = label_map(with_background(maps, job.refine.background_power), labels)
    found["refined"] = confusion_counts(predicted, target, job.classes)
    if job.crf:
        options = job.refine.model_copy(update={"boundary": "crf"})
        mask, _ = pseudo_mask(job.refined, labels, target.shape, options, lambda: load_image(job.sample.image_path))
        found["crf"] = confusion_counts(mask, target, job.classes)
    return found


if __name__ == "__main__":
    main()
