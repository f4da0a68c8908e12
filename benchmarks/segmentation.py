"""Single-stage segmentation: recipes and the fully supervised bound on one schedule, the frozen encoders run once for all.

    python benchmarks/segmentation.py --config my.toml --train train_aug --val val --work runs/segmentation \
        --heads 0=cmpa-0.safetensors 1=cmpa-1.safetensors [--iterations 500] [--rows NAME ...]

All rows see the same crops at the same steps; a seed changes heads, decoder and dropout. Each row's model is written to
WORK/ROW/model.safetensors, as `ssr train` does. Ground truth of the training split is opened for the rows `masks` alone, that
of the validation split for scoring. Prints Markdown.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ablation import seven_classes, typed_options
from numpy.typing import NDArray
from pipelines.method.encoder_pair import Encoded, EncoderPair

from pipelines.config import read_config, read_recipe
from pipelines.datasets import load_dataset
from pipelines.datasets.base import Dataset
from pipelines.encoders.clip import ClipEncoder, ClipTokens
from pipelines.evaluation.confusion import confusion_counts
from pipelines.evaluation.ground_truth import read_mask
from pipelines.evaluation.metrics import Metrics, metrics_from_counts
from pipelines.execution.devices import peak_memory, resolve_device
from pipelines.execution.label_map_workers import MaskJob
from pipelines.execution.pool import process_pool, resolve_workers
from pipelines.method.cam_extractor import CamExtractor
from pipelines.method.label_maps import make_label_map
from pipelines.method.photo import Crop
from pipelines.method.predictor import Predictor
from pipelines.models.segmenter import Segmenter, write_segmenter
from pipelines.options.align import AlignOptions
from pipelines.options.sources import ClipOptions, DatasetOptions, DinoOptions, RunOptions
from pipelines.options.stages import CamsOptions, RefineOptions, SuperpixelsOptions
from pipelines.options.train import PredictOptions, TrainOptions
from pipelines.stages import superpixels
from pipelines.stages.train.inputs import TrainInputs, TrainSections, part_of
from pipelines.training.processes import Processes
from pipelines.training.segmentation import SegmentationTrainer
from pipelines.workdir.workspace import Workspace
from ssr_cli.console import ConsoleProgress

ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    # row: recipe, changes to [train]
    "weclip": ("weclip", {"ckpt": None}),
    "ssr, seed 0": ("ssr", {"seed": 0}),
    "ssr, seed 1": ("ssr", {"seed": 1}),
    "ssr, plain CLIP": ("ssr", {"ckpt": None}),
    "masks": ("ssr", {"supervision": "masks", "ckpt": None}),
}
SCORES: dict[str, dict[str, Any]] = {
    "one scale": {"scales": (1.0,), "flip": False},
    "scales, flip": {},
    "scales, flip, CRF": {"crf": True},
}


class Remembering(ClipEncoder):
    """A CLIP that keeps its last few passes over photos: rows that ask for the same one share it."""

    def __init__(self, encoder: ClipEncoder, keep: int) -> None:
        self.__dict__.update(encoder.__dict__)
        self._kept: dict[bytes, ClipTokens] = {}
        self._keep = keep

    def encode(self, images: torch.Tensor, *_: Any, token_blocks: int = 0, **__: Any) -> ClipTokens:
        """Tokens of the first blocks, from a pass that kept those of all."""
        key = images.numpy().tobytes()
        if key not in self._kept:
            if len(self._kept) == self._keep:
                self._kept.pop(next(iter(self._kept)))
            self._kept[key] = super().encode(images, token_blocks=len(self.blocks))
        found = self._kept[key]
        assert found.block_tokens is not None
        return dataclasses.replace(found, block_tokens=found.block_tokens[:token_blocks])


class SharedGradcam:
    """GradCAM of a batch, made once for all rows: it depends on CLIP and the labels alone."""

    def __init__(self) -> None:
        self._tokens, self._maps = torch.empty(0), torch.empty(0)

    def of(self, maker: CamExtractor) -> CamExtractor:
        """The same maker, which asks here first."""
        make = maker.gradcam

        def gradcam(tokens: ClipTokens, labels: Sequence[tuple[int, ...]]) -> torch.Tensor:
            if tokens.tokens_cls is not self._tokens:
                self._tokens, self._maps = tokens.tokens_cls, make(tokens, labels)
            return self._maps

        maker.gradcam = gradcam  # type: ignore[method-assign]
        return maker


@dataclasses.dataclass
class Row:
    """One training."""

    inputs: TrainInputs
    trainer: SegmentationTrainer
    seconds: float = 0.0

    def step(self, crops: list[Crop], encoded: Encoded) -> None:
        """Train on crops that the frozen encoders have seen."""
        started = time.monotonic()
        assert encoded.clip is not None
        assert encoded.clip.block_tokens is not None
        clip = dataclasses.replace(encoded.clip, block_tokens=encoded.clip.block_tokens[: self.inputs.token_blocks])
        self.trainer.step([part_of(crops, dataclasses.replace(encoded, clip=clip), self.inputs.labels)])
        self.seconds += time.monotonic() - started


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
        rows = {name: _row(name, base, heads, changes, stack) for name in arguments.rows}
        shared = SharedGradcam()
        for row in rows.values():
            if row.inputs.labels is not None:
                shared.of(row.inputs.labels.maker)
        train(rows, arguments.iterations)
    for name, row in rows.items():
        write_segmenter(arguments.work / _folder(name) / "model.safetensors", _segmenter(row), row.inputs.weights)
    score(rows, load_dataset(dataset.model_copy(update={"split": arguments.val})), arguments.work)


def _row(name: str, base: Workspace, heads: dict[int, Path], changes: dict[str, Any], stack: ExitStack) -> Row:
    recipe, own = ROWS[name]
    values = read_recipe(recipe)
    if "ckpt" not in own and own.get("seed", 0) not in heads:
        raise SystemExit(f"row {name!r} needs --heads {own.get('seed', 0)}=cmpa.safetensors")
    options = TrainOptions(**{**values.get("train", {}), **changes, "ckpt": heads.get(own.get("seed", 0)), **own})
    if options.filter_from > 0:  # half-way, as in the papers' 30,000 steps
        options = options.model_copy(update={"filter_from": options.iterations // 2})
    sections = TrainSections(options, AlignOptions(), CamsOptions(**values["cams"]), RefineOptions(**values["refine"]))
    inputs = TrainInputs(base, sections.checked(base), resolve_device(base.run.device), Processes(), stack)
    return Row(inputs, SegmentationTrainer(inputs.decoder(), options, inputs.device, dtype=inputs.encoder.dtype))


def train(rows: dict[str, Row], iterations: int) -> None:
    """All rows, step by step."""
    widest = max(rows.values(), key=lambda row: (row.inputs.pair.dino is not None, row.inputs.labels is not None))
    pair = widest.inputs.pair
    everything = EncoderPair(pair.clip, pair.dino, RefineOptions(), len(pair.clip.blocks), each_block=6)
    source = dataclasses.replace(
        widest.inputs.source, options=widest.inputs.source.options.model_copy(update={"supervision": "masks", "seed": 0})
    ) if any(row.inputs.labels is None for row in rows.values()) else widest.inputs.source  # fmt: skip
    progress, encoding = ConsoleProgress(), 0.0
    progress.start("train", iterations, unit="steps")
    for step, crops, _ in source.steps(0, Processes()):
        if step == iterations:
            break
        started = time.monotonic()
        encoded = everything.encode([crop.photo for crop in crops], clip_tokens=True)
        encoding += time.monotonic() - started
        for row in rows.values():
            row.step(crops, encoded)
        progress.advance()
    progress.finish()
    print(f"{iterations} steps: frozen encoders {encoding:.0f} s, shared; {peak_memory(widest.inputs.device)}")
    for name, row in rows.items():
        print(f"{name}: labels, decoder and its gradient {row.seconds:.0f} s", flush=True)


def score(rows: dict[str, Row], dataset: Dataset, work: Path) -> None:
    """Label maps of every row at every setting, and their table."""
    encoder = Remembering(next(iter(rows.values())).inputs.encoder, keep=4)
    settings = {name: PredictOptions(**options) for name, options in SCORES.items()}
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
            logits: dict[tuple[Any, ...], NDArray[np.float16]] = {}
            for (r, s), predictor in predictors.items():
                passes = (r, settings[s].scales, settings[s].flip)
                if passes not in logits:
                    logits[passes] = predictor.logits([predictor.load(sample)])[0].half().cpu().numpy()
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
    inputs, options = row.inputs, row.inputs.sections.train
    names = inputs.workspace.dataset.classes.names
    return Segmenter(row.trainer.decoder.eval(), inputs.token_blocks, names, options.supervision, row.trainer.iteration)


def _folder(name: str) -> str:
    return name.replace(", ", "-").replace(" ", "-")


if __name__ == "__main__":
    main()
