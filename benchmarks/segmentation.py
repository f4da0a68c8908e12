"""Single-stage segmentation: recipes and the fully supervised bound on one schedule, the frozen encoders run once for all.

    python benchmarks/segmentation.py --config my.toml --train train_aug --val val --work runs/segmentation \
        --heads 0=cmpa-0.safetensors 1=cmpa-1.safetensors [--iterations 500] [--rows NAME ...] [--cache-views N]

All rows see the same crops at the same steps; a seed changes heads, decoder and dropout. With --cache-views each photo has N
crops, encoded and labelled once, as `ssr train --cache-views` does. Each row's model is written to WORK/ROW/model.safetensors.
Ground truth of the training split is opened for the rows `masks` alone, that of the validation split for scoring. Prints
Markdown.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ablation import seven_classes, typed_options
from numpy.typing import NDArray
from torch import Tensor

from pipelines.config import read_config, read_recipe
from pipelines.datasets import load_dataset
from pipelines.datasets.base import Dataset
from pipelines.datasets.image import load_image
from pipelines.encoders.clip import ClipEncoder, ClipTokens
from pipelines.evaluation.confusion import confusion_counts
from pipelines.evaluation.ground_truth import read_mask
from pipelines.evaluation.metrics import Metrics, metrics_from_counts
from pipelines.execution.devices import peak_memory, resolve_device
from pipelines.execution.label_map_workers import MaskJob
from pipelines.execution.pool import process_pool, resolve_workers
from pipelines.method.encoders import Blocks, Encoders
from pipelines.method.evidence import Evidence, Grid, Need
from pipelines.method.label_maps import make_label_map
from pipelines.method.photo import Crop
from pipelines.method.predictor import Predictor
from pipelines.models.segmenter import Segmenter, write_segmenter
from pipelines.options.align import AlignOptions
from pipelines.options.sources import ClipOptions, DatasetOptions, DinoOptions, RunOptions
from pipelines.options.stages import CamsOptions, RefineOptions, SuperpixelsOptions
from pipelines.options.train import PredictOptions, TrainOptions
from pipelines.stages import superpixels
from pipelines.stages.train.crops import CropSource
from pipelines.stages.train.inputs import TrainInputs, new_decoder, train_inputs
from pipelines.stages.train.settings import TrainSections
from pipelines.stages.train.stage import learn
from pipelines.training.alignment_data import photo_order, steps_an_epoch
from pipelines.training.losses import Targets
from pipelines.training.processes import Processes
from pipelines.training.segmentation import SegmentationTrainer
from pipelines.workdir.workspace import Workspace
from ssr_cli.console import ConsoleProgress

CDA = {"affinity_filter": "cda"}
SBE = {"losses": {"sbe": 0.6}}
NO_TEXT = {"text_classifier": False}
ROWS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    # row: recipe, changes to [train], to [refine]
    "weclip": ("weclip", {"ckpt": None}, {}),
    "weclip, seed 1": ("weclip", {"ckpt": None, "seed": 1}, {}),
    "cd-clip": ("cd-clip", {"ckpt": None}, {}),
    "cd-clip, seed 1": ("cd-clip", {"ckpt": None, "seed": 1}, {}),
    "cd-clip, no SBE": ("cd-clip", {"ckpt": None, "losses": {}}, {}),
    "ssr, seed 0": ("ssr", {"seed": 0}, {}),
    "ssr, seed 1": ("ssr", {"seed": 1}, {}),
    "ssr, no text classifier, seed 0": ("ssr", {"seed": 0, **NO_TEXT}, {}),
    "ssr, no text classifier, seed 1": ("ssr", {"seed": 1, **NO_TEXT}, {}),
    "ssr, seed 0, 3000 steps": ("ssr", {"seed": 0, "iterations": 3000}, {}),
    "ssr + CDA + SBE, no text classifier, seed 0": ("ssr", {"seed": 0, **SBE, **NO_TEXT}, CDA),
    "ssr + CDA + SBE, no text classifier, seed 1": ("ssr", {"seed": 1, **SBE, **NO_TEXT}, CDA),
    "ssr + CDA + SBE, seed 0": ("ssr", {"seed": 0, **SBE}, CDA),
    "ssr + CDA + SBE, seed 1": ("ssr", {"seed": 1, **SBE}, CDA),
    "ssr, plain CLIP": ("ssr", {"ckpt": None}, {}),
    "ssr + CDA + SBE, plain CLIP": ("ssr", {"ckpt": None, **SBE}, CDA),
    "masks": ("ssr", {"supervision": "masks", "ckpt": None}, {}),
    "masks, seed 1": ("ssr", {"supervision": "masks", "ckpt": None, "seed": 1}, {}),
}
SCORES: dict[str, dict[str, Any]] = {
    "one scale": {"scales": (1.0,), "flip": False},
    "scales, flip": {},
    "scales, flip, CRF": {"boundary": "crf", "crf_scale": 1.0, "crf_iterations": 10},
}


@dataclasses.dataclass
class Row:
    """One training; its CPU seconds. Rows of one ``labels_key`` have equal labels."""

    inputs: TrainInputs
    options: TrainOptions
    trainer: SegmentationTrainer
    labels_key: str
    labelling: float = 0.0
    learning: float = 0.0

    @property
    def finished(self) -> bool:
        """All of its own iterations are done: rows may have different numbers."""
        return self.trainer.iteration >= self.options.iterations

    def of_own(self, evidence: Evidence) -> Evidence:
        """With the row's own alignment heads."""
        alignment = self.inputs.encoders.alignment
        return evidence if alignment is None else evidence.replacing(alignment=alignment)

    def without_truth(self, crops: Sequence[Crop]) -> Sequence[Crop]:
        """Remove the ground truth that crops have for the rows ``masks``, since labels would take it for corrected masks."""
        return crops if self.inputs.labels is None else [dataclasses.replace(crop, target=None) for crop in crops]

    def step(self, crops: Sequence[Crop], evidence: Evidence) -> None:
        """Label crops that the frozen encoders have seen, and train on them."""
        started = time.process_time()
        learn(self.trainer, self.without_truth(crops), self.of_own(evidence), self.inputs.labels)
        self.trainer.step()
        self.learning += time.process_time() - started

    def labelled(self, crops: Sequence[Crop], evidence: Evidence) -> list[Targets]:
        """Label crops once, for views that are kept: one entry a crop."""
        started = time.process_time()
        if self.inputs.labels is not None:
            found = self.inputs.labels(self.without_truth(crops), self.of_own(evidence))
        else:
            truth = torch.stack([crop.target for crop in crops if crop.target is not None])  # (B, S, S)
            found = Targets(truth.to(self.trainer.device))
        self.labelling += time.process_time() - started
        maps = found.super_maps
        return [
            dataclasses.replace(
                found,
                labels=found.labels[place : place + 1].to(torch.uint8),
                super_maps=None if maps is None else maps[place : place + 1],
            )
            for place in range(len(crops))
        ]

    def step_on_views(self, tokens: Tensor, grid: Grid, targets: Sequence[Targets]) -> None:
        """Train on views that were encoded and labelled before."""
        started = time.process_time()
        maps = [own.super_maps for own in targets if own.super_maps is not None]
        labels = torch.cat([own.labels for own in targets]).long()  # (B, S, S)
        whole = dataclasses.replace(targets[0], labels=labels, super_maps=torch.cat(maps) if maps else None)
        self.trainer.backward(self.trainer.forward(tokens, grid, range(len(targets))), whole)
        self.trainer.step()
        self.learning += time.process_time() - started


@dataclasses.dataclass
class Views:
    """Fixed crops of each photo with the labels of every row, made when a step first asks for them."""

    rows: dict[str, Row]
    shared: Encoders
    source: CropSource
    count: int
    encoding: float = 0.0
    kept: dict[tuple[int, int], tuple[Tensor, dict[str, Targets]]] = dataclasses.field(default_factory=dict)

    def step(self, step: int, photos: Sequence[int]) -> None:
        """Train every row on the views of some photos: view e modulo their number in epoch e."""
        samples = self.source.dataset.samples
        view = step // steps_an_epoch(len(samples), len(photos)) % self.count
        missing = [photo for photo in photos if (photo, view) not in self.kept]
        if missing:
            started = time.process_time()
            crops = [self.source.views(samples[photo], [view])[0] for photo in missing]
            evidence = self.shared.encode([crop.photo for crop in crops])
            self.encoding += time.process_time() - started
            targets: dict[str, list[Targets]] = {}
            for row in self.rows.values():
                if row.labels_key not in targets:
                    targets[row.labels_key] = row.labelled(crops, evidence)
            for place, photo in enumerate(missing):
                tokens = evidence.clip_block_tokens[:, place].half()  # (L, N, D)
                self.kept[photo, view] = tokens, {key: own[place] for key, own in targets.items()}
        batch = [self.kept[photo, view] for photo in photos]
        side = self.source.options.crop // self.shared.clip.patch_size
        tokens = torch.stack([own for own, _ in batch], dim=1)  # (L, B, N, D)
        for row in self.rows.values():
            if not row.finished:
                row.step_on_views(tokens, (side, side), [targets[row.labels_key] for _, targets in batch])


def main() -> None:
    """Train every row, score every row, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="dataset, clip and dino sections")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--train", default="train_aug")
    parser.add_argument("--val", default="val")
    parser.add_argument("--heads", nargs="+", default=[], metavar="SEED=FILE", help="checkpoint of `ssr align` for each seed")
    parser.add_argument("--iterations", type=int, default=500)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--cache-views", type=int, default=0, metavar="N", help="fixed crops a photo; 0 = new ones every step")
    parser.add_argument("--scores", nargs="+", default=list(SCORES), choices=list(SCORES), metavar="NAME", help="settings")
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS), metavar="NAME")
    arguments = parser.parse_args()
    values, _ = read_config(arguments.config)
    dataset = typed_options(DatasetOptions, values, "dataset")
    base = Workspace(
        work=arguments.work,
        dataset_options=dataset.model_copy(update={"split": arguments.train}),
        clip=typed_options(ClipOptions, values, "clip"),
        dino=typed_options(DinoOptions, values, "dino"),
        run=typed_options(RunOptions, values, "run"),
    )
    superpixels.run(base, SuperpixelsOptions(**read_recipe("ssr")["superpixels"]), ConsoleProgress())
    heads = {int(seed): Path(file) for seed, file in (entry.split("=", 1) for entry in arguments.heads)}
    changes = {"iterations": arguments.iterations, "learning_rate": arguments.learning_rate}
    with ExitStack() as stack:
        rows = {name: _row(name, base, heads, changes, arguments.cache_views, stack) for name in arguments.rows}
        train(rows, max(row.options.iterations for row in rows.values()), arguments.cache_views)
    for name, row in rows.items():
        weights = row.inputs.encoders.clip.weights
        write_segmenter(arguments.work / _folder(name) / "model.safetensors", _segmenter(row), weights)
    settings = {name: PredictOptions(**SCORES[name]) for name in arguments.scores}
    score(rows, load_dataset(dataset.model_copy(update={"split": arguments.val})), settings, arguments.work)


def _row(name: str, base: Workspace, heads: dict[int, Path], changes: dict[str, Any], views: int, stack: ExitStack) -> Row:
    recipe, own, refine = ROWS[name]
    values = read_recipe(recipe)
    if "ckpt" not in own and own.get("seed", 0) not in heads:
        raise SystemExit(f"row {name!r} needs --heads {own.get('seed', 0)}=cmpa.safetensors")
    options = TrainOptions(**{**values.get("train", {}), **changes, "ckpt": heads.get(own.get("seed", 0)), **own})
    if options.filter_from > 0:  # half-way, as in the papers' 30,000 steps; views keep labels that nothing filters
        options = options.model_copy(update={"filter_from": -1 if views else options.iterations // 2})
    sections = TrainSections(
        options, AlignOptions(), CamsOptions(**values["cams"]), RefineOptions(**{**values["refine"], **refine})
    )
    inputs = train_inputs(base, sections.checked(base), resolve_device(base.run.device), Processes(), stack)
    encoder = inputs.encoders.clip
    decoder = new_decoder(options, encoder, len(base.dataset.classes.names), inputs.aligned)
    trainer = SegmentationTrainer(decoder, options, encoder.device, dtype=encoder.dtype, project=encoder.tail((1, 1)).project)
    return Row(inputs, options, trainer, repr((recipe, refine, options.ckpt, options.supervision, options.losses)))


def train(rows: dict[str, Row], iterations: int, count: int) -> None:
    """All rows, step by step, on new crops or on ``count`` views of each photo."""
    encoders = [row.inputs.encoders for row in rows.values()]
    widest = max(
        rows.values(),
        key=lambda row: (
            row.inputs.encoders.dino is not None,
            row.inputs.source.superpixels is not None,
            row.inputs.labels is not None,
        ),
    )
    needs, clip = frozenset[Need]().union(*(one.needs for one in encoders)), widest.inputs.encoders.clip
    depth = Blocks(RefineOptions().clip_blocks, RefineOptions().dino_blocks, clip_each=6, clip_tokens=len(clip.blocks))
    texts = [one.text for one in encoders if one.text is not None]
    text = next((one for one in texts if one.supers is not None), texts[0] if texts else None)
    shared = Encoders(needs - {"alignment"}, clip, widest.inputs.encoders.dino, text, None, depth)
    source = dataclasses.replace(widest.inputs.source, encoders=shared)
    if any(row.inputs.labels is None for row in rows.values()):
        options = source.options.model_copy(update={"supervision": "masks", "seed": 0})
        source = dataclasses.replace(source, options=options)
    progress, encoding = ConsoleProgress(), 0.0
    progress.start("train", iterations, unit="steps")
    if count:
        views = Views(rows, shared, source, count)
        photos = photo_order(len(source.dataset.samples), source.options.batch, source.options.seed)
        for step, batch in enumerate(islice(photos, iterations)):
            views.step(step, batch)
            progress.advance()
        encoding = views.encoding
    else:
        for _, crops, _ in islice(source.steps(0, Processes()), iterations):
            started = time.process_time()
            evidence = shared.encode([crop.photo for crop in crops])
            encoding += time.process_time() - started
            for row in rows.values():
                if not row.finished:
                    row.step(crops, evidence)
            progress.advance()
    progress.finish()
    print(f"{iterations} steps, CPU seconds: frozen encoders {encoding:.0f}, shared; {peak_memory(clip.device)}")
    for name, row in rows.items():
        labels = f"labels of views {row.labelling:.0f}, decoder" if count else "labels, decoder"
        print(f"{name}: {labels} and its gradient {row.learning:.0f}", flush=True)


class SharedPasses:
    """A frozen CLIP that runs once for all rows that show it the same pixels."""

    def __init__(self, encoder: ClipEncoder) -> None:
        self.encoder, self.seen = encoder, {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.encoder, name)

    def encode(self, images: Tensor, token_blocks: int) -> ClipTokens:
        """Tokens of the first blocks."""
        key = images.shape, hash(images.cpu().numpy().tobytes())
        if key not in self.seen:
            self.seen[key] = self.encoder.encode(images, token_blocks=len(self.encoder.blocks))
        found = self.seen[key]
        return dataclasses.replace(found, block_tokens=found.block_tokens[:token_blocks])


def score(rows: dict[str, Row], dataset: Dataset, settings: dict[str, PredictOptions], work: Path) -> None:
    """Label maps of every row at every setting, and their table."""
    encoder = SharedPasses(next(iter(rows.values())).inputs.encoders.clip)
    predictors = {(r, s): Predictor(encoder, _segmenter(row), settings[s]) for r, row in rows.items() for s in settings}
    names = dataset.classes.label_map_names
    counts: dict[tuple[str, str], NDArray[np.int64]] = {
        key: np.zeros((len(names), len(names) + 1), np.int64) for key in predictors
    }
    progress = ConsoleProgress()
    progress.start("score", len(dataset.samples))
    with process_pool(resolve_workers(0)) as pool:
        waiting: list[Any] = []
        for sample in dataset.samples:
            gt = dataset.mask_path(sample.image_id)
            encoder.seen.clear()
            logits: dict[tuple[Any, ...], NDArray[np.float16]] = {}
            for (r, s), predictor in predictors.items():
                passes = (r, settings[s].scales, settings[s].flip)
                if passes not in logits:
                    logits[passes] = (
                        predictor.logits([predictor.photo(sample, load_image(sample.image_path))])[0].half().cpu().numpy()
                    )
                target = work / _folder(r) / _folder(s) / f"{sample.image_id}.png"
                size = read_mask(gt).shape if gt else (0, 0)
                job = MaskJob(sample.image_id, sample.image_path, logits[passes], (), (size[0], size[1]), target)
                waiting.append(((r, s), pool.submit(_scored, job, settings[s], gt, len(names))))
            while len(waiting) > 64:
                key, future = waiting.pop(0)
                counts[key] += future.result()
            progress.advance()
        for key, future in waiting:
            counts[key] += future.result()
    progress.finish()
    found = {key: metrics_from_counts(matrix, names) for key, matrix in counts.items()}
    _print(list(rows), list(settings), found, f"{dataset.split}, {len(dataset.samples)} photos")


def _scored(job: MaskJob, options: PredictOptions, gt: Path, classes: int) -> NDArray[np.int64]:
    make_label_map(job, options)
    return confusion_counts(read_mask(job.target), read_mask(gt), classes)


def _print(rows: list[str], settings: list[str], found: dict[tuple[str, str], Metrics], title: str) -> None:
    print(f"\n**{title}** (mIoU / 7cls; share of the supervised bound)\n")
    print(f"| row | {' | '.join(settings)} |\n|{'---|' * (len(settings) + 1)}")
    for row in rows:
        cells = []
        for setting in settings:
            metrics, bound = found[row, setting], found.get(("masks", setting))
            share = f" ({100 * metrics.miou / bound.miou:.1f} %)" if bound and row != "masks" else ""
            cells.append(f"{100 * metrics.miou:.2f}{seven_classes(metrics)}{share}")
        print(f"| {row} | {' | '.join(cells)} |")
    print()
    for row in rows:
        iou = found[row, settings[-1]].per_class_iou
        print(f"{row}: " + ", ".join(f"{key} {100 * value:.1f}" for key, value in iou.items() if value is not None))


def _segmenter(row: Row) -> Segmenter:
    decoder, names = row.trainer.decoder.eval(), row.inputs.source.dataset.classes.names
    return Segmenter(decoder, decoder.sizes["blocks"], names, row.options.supervision, row.trainer.iteration)


def _folder(name: str) -> str:
    return name.replace(", ", "-").replace(" ", "-")


if __name__ == "__main__":
    main()
