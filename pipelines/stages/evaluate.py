"""`ssr eval`: scores CAMs, masks or any folder of PNGs against ground truth."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.datasets.base import Dataset, Sample
from pipelines.datasets.splits import read_split
from pipelines.errors import ImageError, SsrError, UsageError
from pipelines.evaluation.confusion import confusion_counts
from pipelines.evaluation.counted import Counted, write_counted
from pipelines.evaluation.figures import confusion_figure, iou_figure, save_figure
from pipelines.evaluation.ground_truth import read_mask
from pipelines.evaluation.metrics import Metrics, metrics_from_counts
from pipelines.evaluation.plausibility import Plausibility, nothing_seen, plausibility
from pipelines.evaluation.report import Report, rules, write_confusion, write_csv, write_report
from pipelines.execution.interruption import refuse_if_interrupted, until_interrupted
from pipelines.execution.pool import map_bounded, resolve_workers
from pipelines.execution.progress import Progress, Silent
from pipelines.ops.label_map import label_map, resize_maps, with_background
from pipelines.options.stages import EvalOptions
from pipelines.stores.array_store import PATIENCE, ArrayReader, store_exists
from pipelines.stores.image_arrays import read_cam
from pipelines.stores.manifest import Manifest, read_manifest
from pipelines.stores.one_writer import one_writer
from pipelines.workdir.commands import command_for
from pipelines.workdir.workspace import PREDICTED, REPORTS, Workspace

STAGE = "eval"

ORACLE_POWERS = tuple(float(p) for p in range(1, 11))
"""Exponents that ``--oracle`` compares, those of CLIP-ES."""


Predict = Callable[[Sample, tuple[int, int]], dict[float | None, NDArray[np.uint8]]]
"""Maps an image and ``(H, W)`` of its ground truth to label maps, by background power."""


@dataclass(frozen=True)
class Evaluation:
    """One report, and what it was computed from.

    Attributes:
        report: The report as written.
        metrics: All metrics, also per class.
        folder: Folder of ``report.json``, the table and the figures.
        failed: Number of images left out because they could not be scored.
    """

    report: Report
    metrics: Metrics
    folder: Path
    failed: int


def outputs(workspace: Workspace, *arguments: Any) -> tuple[Path, ...]:
    """Return no paths, because counts of shares are added up and not merged."""
    return ()


def run(
    workspace: Workspace, what: str, options: EvalOptions, background_power: float, progress: Progress | None = None
) -> list[Evaluation]:
    """Score one output of a work directory.

    Args:
        workspace: Names the images and their ground truth.
        what: ``cams``, ``refined``, ``masks``, ``predictions`` or ``retrained`` (of this split), or a folder of PNGs named
            after the image ids.
        options: Options of the scores.
        background_power: Exponent p of the background score for ``cams`` and ``refined``.
        progress: Receives each image.

    Returns:
        The evaluation, and with ``options.oracle`` a second one at the p that is best on the ground truth. Empty for a shard,
        whose counts are stored.

    Raises:
        UsageError: There is no ground truth, or p is given where label maps are scored.
        SsrError: There is nothing to score, or the ground truth marks objects with 255.
        TooManyFailures: More images than allowed have no prediction or no ground truth.
    """
    counted = count(workspace, what, options, background_power, progress)
    return finish(workspace.work, counted) if workspace.shard is None else []


def count(
    workspace: Workspace, what: str, options: EvalOptions, background_power: float, progress: Progress | None = None
) -> Counted:
    """Count pixels of the workspace's share; see `run`.

    A shard's counts are stored, so that `ssr merge` can add them up.
    """
    progress = progress or Silent()
    if what in PREDICTED:
        what = str(workspace.work / what / workspace.dataset.split)
    samples = _selected(workspace, options)
    targets = _ground_truth(workspace.dataset, options)
    scores_cams = what in {"cams", "refined"}
    if options.oracle and not scores_cams:
        raise UsageError("--oracle chooses the background exponent of CAMs; masks have none", "ssr eval cams --oracle")
    powers: tuple[float | None, ...] = (background_power,) if scores_cams else (None,)
    if options.oracle:
        powers = (*powers, *(p for p in ORACLE_POWERS if p != background_power))
    names = workspace.dataset.classes.label_map_names
    classes = len(workspace.dataset.classes.names)
    totals = {power: np.zeros((len(names), len(names) + 1), dtype=np.int64) for power in powers}
    truth = nothing_seen(classes)
    tally = workspace.tally(f"{STAGE} {what}", progress)
    with ExitStack() as stack:
        predict = _predictor(workspace, what, powers, stack)

        def score(sample: Sample) -> tuple[dict[float | None, NDArray[np.int64]], Plausibility]:
            target = read_mask(targets(sample.image_id), classes)
            predictions = predict(sample, target.shape)
            try:
                counts = {power: confusion_counts(label_map, target, len(names)) for power, label_map in predictions.items()}
            except ValueError as error:
                raise ImageError(str(error)) from error
            return counts, plausibility(target, classes, sample.labels)

        workers = resolve_workers(workspace.run.workers)
        pool = stack.enter_context(ThreadPoolExecutor(workers))
        progress.start(f"eval {what}", len(samples))
        for sample, scored in map_bounded(pool, score, until_interrupted(samples), ahead=4 * workers):
            if isinstance(scored, ImageError):
                tally.made(sample.image_id, scored)
            else:
                tally.made(sample.image_id)
                truth += scored[1]
                for power, matrix in scored[0].items():
                    totals[power] += matrix
        progress.finish()
    refuse_if_interrupted("run the same command again")  # the score of a part of the images is no result
    manifest = _manifest_of(workspace, what)
    split = workspace.dataset.split
    counted = Counted(
        what=_name_of(workspace, what),
        split=split if options.images is None else f"{split}, ids of {options.images.name}",
        names=names,
        totals=totals,
        images=tally.counts.done,
        failed=tally.counts.failed,
        options_digest=manifest.options_digest if manifest else "unknown",
        boundary=_boundary(what, manifest),
        supervised=manifest is not None and manifest.settings.get("supervision") == "masks",
        corrected=manifest is not None and manifest.settings.get("supervision") == "corrected",
        tagged=manifest is not None and "tags" in (manifest.dataset.get("labels"), manifest.settings.get("supervision")),
        oracle=options.oracle,
        pictures=options.pictures,
        truth=truth,
    )
    if workspace.shard is not None:
        write_counted(workspace.shard.place(workspace.work / REPORTS) / f"{counted.what}.json", counted)
    elif tally.counts.done == 0:
        raise SsrError(f"none of {len(samples)} images could be scored", f"see {tally.failures.path}")
    return counted


def finish(work: Path, counted: Counted) -> list[Evaluation]:
    """Turn counts into written reports.

    Args:
        work: The work directory.
        counted: Counts of the whole work list.

    Returns:
        The evaluation, and for an oracle a second one at the p that is best on the ground truth.

    Raises:
        SsrError: The ground truth marks objects with 255.
    """
    counted.truth.refuse_binary(f"split {counted.split}")
    powers = list(counted.totals)
    evaluations = [_finish(work, counted, powers[0], oracle=False)]
    if counted.oracle:
        best = max(powers, key=lambda p: metrics_from_counts(counted.totals[p], counted.names).miou)
        evaluations.append(_finish(work, counted, best, oracle=True))
    return evaluations


def _finish(work: Path, counted: Counted, power: float | None, *, oracle: bool) -> Evaluation:
    counts = counted.totals[power]
    metrics = metrics_from_counts(counts, counted.names)
    folder = work / REPORTS / (f"{counted.what}-oracle" if oracle else counted.what)
    report = Report(
        **metrics.summary,
        what=counted.what,
        split=counted.split,
        images=counted.images,
        options_digest=counted.options_digest,
        boundary=counted.boundary,
        background_power=power,
        oracle=oracle,
        rules=rules(power, oracle=oracle),
        confusion_matrix="confusion.npy",
        warnings=counted.truth.warnings(counted.names[1:]),
    )
    if counted.supervised:
        report.rules["supervision"] = "ground-truth masks (upper bound)"
    elif counted.corrected:
        report.rules["supervision"] = "pseudo-masks, and masks that people corrected"
    elif counted.tagged:
        report.rules["supervision"] = "tags of class names, no labels of these images"
    with one_writer(folder, "evaluating", PATIENCE):
        write_confusion(counts, folder / "confusion.npy")
        write_csv(metrics, folder / "per_class.csv")
        if counted.pictures:
            save_figure(confusion_figure(counts, report), folder / "confusion.png")
            save_figure(iou_figure(report), folder / "per_class_iou.png")
        write_report(report, folder / "report.json")
    return Evaluation(report, metrics, folder, counted.failed)


def _name_of(workspace: Workspace, what: str) -> str:
    """Return the name of the report's folder; a foreign folder never gets the name of the work directory's own output."""
    outputs = ("cams", "refined", "masks")
    folder = Path(what).resolve()
    if what in outputs or folder == workspace.masks.resolve():
        return what if what in outputs else "masks"
    if folder.parent in {(workspace.work / name).resolve() for name in PREDICTED}:
        return f"{folder.parent.name}-{folder.name}"
    return f"{folder.parent.name}-{folder.name}" if folder.name in outputs else folder.name


def _selected(workspace: Workspace, options: EvalOptions) -> Collection[Sample]:
    if options.images is None:
        return workspace.samples
    ids = set(read_split(options.images, {sample.image_id for sample in workspace.dataset.samples}))
    unknown = set(ids)
    selected: list[Sample] = []
    for sample in workspace.dataset.samples:
        unknown.discard(sample.image_id)
        if sample.image_id in ids and (workspace.shard is None or workspace.shard.holds(sample.image_id)):
            selected.append(sample)
    if unknown:
        raise UsageError(f"{options.images}: {min(unknown)} is not in split {workspace.dataset.split}", "--images, --split")
    return selected


def _ground_truth(dataset: Dataset, options: EvalOptions) -> Callable[[str], Path]:
    if options.mask_folder is not None:
        folder = options.mask_folder
        if not folder.is_dir():
            raise UsageError(f"no ground truth: {folder} is not a folder", "--mask-folder")
        return lambda image_id: folder / f"{image_id}.png"
    if dataset.mask_folder is None or not dataset.mask_folder.is_dir():
        raise UsageError(f"this dataset has no ground truth at {dataset.mask_folder or dataset.root}", "--mask-folder FOLDER")

    def path(image_id: str) -> Path:
        mask = dataset.mask_path(image_id)
        assert mask is not None  # noqa: S101 - mask_folder was checked
        return mask

    return path


def _predictor(workspace: Workspace, what: str, powers: Sequence[float | None], stack: ExitStack) -> Predict:
    if what in {"cams", "refined"}:
        store = workspace.cams if what == "cams" else workspace.refined
        if not store_exists(store):
            command = command_for(workspace.work, "ssr cams" if what == "cams" else "ssr refine")
            raise SsrError(f"no {what} in {workspace.work}", f"run `{command}` first")
        return _cam_predictor(stack.enter_context(ArrayReader(store)), what, [p for p in powers if p is not None])
    folder = workspace.masks if what == "masks" else Path(what)
    if not folder.is_dir():
        makers = {"predictions": "predict", "retrained": "predict --model retrained"}
        hint = "expected cams, refined, masks, predictions, retrained or a folder of PNGs"
        if what == "masks" or (folder.parent.name in makers and folder.parent.parent == workspace.work):
            command = command_for(workspace.work, f"ssr {makers.get(folder.parent.name, 'refine')}")
            hint = f"run `{command}` first"
        raise SsrError(f"nothing to score at {folder}", hint)

    def predict(sample: Sample, size: tuple[int, int]) -> dict[float | None, NDArray[np.uint8]]:
        path = folder / f"{sample.image_id}.png"
        if not path.is_file():
            raise ImageError(f"nothing to score at {path}", "run `ssr refine`" if what == "masks" else None)
        mask = read_mask(path)
        if mask.shape != size:
            raise ImageError(
                f"the mask is {mask.shape[0]} x {mask.shape[1]}, ground truth {size[0]} x {size[1]} (rows x columns)"
            )
        return {None: mask}

    return predict


def _cam_predictor(reader: ArrayReader, what: str, powers: Sequence[float]) -> Predict:
    lock = Lock()  # h5py is serialised anyway; the lock covers the read only, so that decoding runs in parallel

    def predict(sample: Sample, size: tuple[int, int]) -> dict[float | None, NDArray[np.uint8]]:
        if sample.image_id not in reader:
            raise ImageError(f"it has no {what}", f"run `ssr {'cams' if what == 'cams' else 'refine'}`")
        with lock:
            cam, attributes = read_cam(reader, sample.image_id)
        if list(size) != attributes.get("size"):
            raise ImageError(f"the image is {attributes.get('size')}, ground truth {list(size)} (rows, columns)")
        maps = resize_maps(cam, size)  # (K, H, W)
        labels = tuple(attributes["labels"])
        return {power: label_map(with_background(maps, power), labels) for power in powers}

    return predict


def _manifest_of(workspace: Workspace, what: str) -> Manifest | None:
    outputs = {"cams": workspace.cams, "refined": workspace.refined, "masks": workspace.masks}
    if what in outputs:
        return read_manifest(outputs[what])
    try:
        return Manifest.read(Path(what).resolve().with_suffix(".json"))
    except SsrError:  # the .json beside a foreign folder may be no manifest
        return None


def _boundary(what: str, manifest: Manifest | None) -> str | None:
    if what in {"cams", "refined"}:
        return "none"
    value = manifest.settings.get("boundary") if manifest else None
    return value if isinstance(value, str) else None
