"""`ssr labels --check`: lists labels that are probably wrong or missing, by the scores of class names, worst first.

The scores come from plain CLIP, which is trained on none of these labels, so the label that is checked does not change its own
score. No ground truth is opened.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.datasets.base import Sample
from pipelines.datasets.image import load_image
from pipelines.datasets.unlabelled import without_labels
from pipelines.errors import ImageError, SsrError
from pipelines.execution.devices import resolve_device
from pipelines.execution.pool import process_pool
from pipelines.execution.progress import Progress, Silent
from pipelines.figures.check_page import Doubt, check_page
from pipelines.figures.panel import overlay_cam, panel
from pipelines.method import readouts
from pipelines.method.encoders import Blocks, Encoders
from pipelines.method.loading import FrozenModels
from pipelines.method.photo import Photo
from pipelines.ops.label_map import resize_maps
from pipelines.ops.thresholds import calibrate, doubts, label_table
from pipelines.options.stages import CamsOptions, SuperpixelsOptions
from pipelines.options.tag import TagOptions
from pipelines.stages import tag
from pipelines.stores.array_store import ArrayReader
from pipelines.stores.files import atomic_path
from pipelines.workdir.photos import load_unstored
from pipelines.workdir.settings import model_sources
from pipelines.workdir.workspace import Workspace

FOLDER = "check"
HEIGHT = 220
TAGS = TagOptions(tagger="dense")


@dataclass(frozen=True)
class Checked:
    """The files that `run` wrote, and their numbers.

    Attributes:
        table: All doubtful labels, worst first.
        page: A page of the first of them, to look at and to tick.
        wrong: Labels in the table, which may be wrong.
        missing: Classes in the table that may be missing.
        shown: Doubts on the page.
        photos: Number of images that were checked.
        failed: Images that could not be used.
    """

    table: Path
    page: Path
    wrong: int
    missing: int
    shown: int
    photos: int
    failed: int


@dataclass(frozen=True)
class _Pair:
    """One (image, class) pair whose label contradicts the scores."""

    sample: Sample
    index: int
    doubt: float
    score: float
    threshold: float

    @property
    def missing(self) -> bool:
        return self.index not in self.sample.labels


def run(
    workspace: Workspace, superpixels: SuperpixelsOptions, cams: CamsOptions, top: int, progress: Progress | None = None
) -> Checked:
    """Compare every label with its score, and write ``WORK/check/doubts.csv`` and ``WORK/check/index.html``.

    Args:
        workspace: Names the images and the labels to check.
        superpixels: SLIC's options.
        cams: Options of the dense read-out. Alignment heads are left out, because they are trained on these labels.
        top: Number of doubts on the page.
        progress: Receives each image.

    Raises:
        SsrError: No image could be used, or none has a label.
        TooManyFailures: There are more bad images than allowed; the scores so far are kept.
    """
    progress, plain = progress or Silent(), cams.model_copy(update={"ckpt": None})
    unseen = without_labels(workspace.dataset)
    place = replace(workspace, work=workspace.work / FOLDER, photos=unseen, remembers=False, shard=None)
    counts = tag.run(place, superpixels, plain, TAGS, progress)
    names = workspace.dataset.classes.names
    pairs, photos = _pairs(workspace, place.tag_scores)
    table, page = place.work / "doubts.csv", place.work / "index.html"
    _write_table(table, pairs, names)
    shown = list(_drawn(place, superpixels, plain, pairs[:top], names, progress))
    labels = ((sample.image_id, [names[index] for index in sample.labels]) for sample in workspace.dataset.samples)
    missing = sum(pair.missing for pair in pairs)
    summary = {"images": f"{photos:,}", "doubtful": f"{len(pairs):,}", "shown": f"{len(shown):,}, worst first"}
    with atomic_path(page) as temporary:
        temporary.write_text(check_page(f"labels of {workspace.dataset.split}", shown, labels, summary), encoding="utf-8")
    return Checked(table, page, len(pairs) - missing, missing, len(shown), photos, counts.failed)


def _pairs(workspace: Workspace, store: Path) -> tuple[list[_Pair], int]:
    """Return the pairs on the wrong side of their thresholds, worst first, and the number of images that were checked."""
    with ArrayReader(store) as reader:
        samples = [sample for sample in workspace.dataset.samples if sample.image_id in reader]
        scores = np.array([reader.read(sample.image_id)[0] for sample in samples], dtype=np.float32)
    labels = label_table([sample.labels for sample in samples], len(workspace.dataset.classes.names))
    if not labels.any():
        raise SsrError("none of the images has a label: there is nothing to check", "--labels FILE, or ssr tag")
    thresholds = calibrate(scores, labels, own=True)
    found = doubts(scores, labels, thresholds)
    order = np.argsort(-found, axis=None, kind="stable")[: int((found > 0).sum())]
    return [
        _Pair(samples[row], column, float(found[row, column]), float(scores[row, column]), float(thresholds[column]))
        for row, column in zip(*(axis.tolist() for axis in np.unravel_index(order, found.shape)), strict=True)
    ], len(samples)


def _write_table(path: Path, pairs: Sequence[_Pair], names: Sequence[str]) -> None:
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("image", "class", "label is", "doubt", "score", "threshold"))
        for pair in pairs:
            numbers = (f"{value:.4f}" for value in (pair.doubt, pair.score, pair.threshold))
            writer.writerow((pair.sample.image_id, names[pair.index], "missing" if pair.missing else "wrong", *numbers))


def _drawn(
    place: Workspace,
    superpixels: SuperpixelsOptions,
    cams: CamsOptions,
    pairs: Sequence[_Pair],
    names: Sequence[str],
    progress: Progress,
) -> Iterator[Doubt]:
    """Draw doubts with image and maps: the map of the class and, for a label that may be wrong, that of the strongest other."""
    if not pairs:
        return
    device, needs = resolve_device(place.run.device), readouts.dense_needs(cams)
    models = FrozenModels(model_sources(place, needs), device, place.run.precision)
    encoders = models.encoders(needs, Blocks())
    progress.start("check: pictures", len(pairs))
    with process_pool(1) as pool:
        for pair in pairs:
            progress.advance()
            try:
                image = np.asarray(load_image(pair.sample.image_path, pair.sample.orient))  # (H, W, 3)
                photo = load_unstored(encoders, pool, superpixels, replace(pair.sample, labels=()))
            except ImageError:  # the image was readable when it was scored
                continue
            maps = _maps(encoders, photo, cams, len(names))  # (C, h, w)
            tiles = [("photo", image)]
            for index in _worth_seeing(pair, maps):
                heat = resize_maps(maps[index : index + 1], photo.size)[0]
                tiles.append((names[index], overlay_cam(image, heat)))
            picture = panel(tiles, HEIGHT)
            data = io.BytesIO()
            picture.save(data, format="JPEG", quality=85)
            note = f"score {pair.score:.3f}, threshold {pair.threshold:.3f}"
            labels = tuple(names[index] for index in pair.sample.labels)
            yield Doubt(pair.sample.image_id, names[pair.index], pair.missing, labels, data.getvalue(), picture.size, note)
    progress.finish()


@torch.no_grad()
def _maps(encoders: Encoders, photo: Photo, cams: CamsOptions, classes: int) -> NDArray[np.float32]:
    """Return the probabilities of all classes of the list in an image, ``(C, h, w)``."""
    evidence = encoders.encode([photo]).replacing(labels=(tuple(range(classes)),))
    maps: NDArray[np.float32] = readouts.dense(evidence, cams).view(-1, *photo.grid).float().cpu().numpy()
    return maps


def _worth_seeing(pair: _Pair, maps: NDArray[np.float32]) -> list[int]:
    """Return the doubtful class, and for a label that may be wrong also the strongest class that is no label."""
    if pair.missing:
        return [pair.index]
    best = maps.reshape(len(maps), -1).max(axis=1)  # (C,)
    best[list(pair.sample.labels)] = -1
    return [pair.index, int(best.argmax())]
