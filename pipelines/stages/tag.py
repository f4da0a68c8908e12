"""`ssr tag`: finds the classes of the list that each image shows, from their names alone, and writes a label file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelines.datasets.label_files import holds_tags, iter_label_file, write_tag_file
from pipelines.datasets.unlabelled import load_unlabelled
from pipelines.errors import SsrError, UsageError
from pipelines.execution.batches import batches_by
from pipelines.execution.devices import resolve_batch_size, resolve_device
from pipelines.execution.fitting import fitting
from pipelines.execution.pool import process_pool, resolve_workers
from pipelines.execution.progress import Progress, Silent
from pipelines.method.encoders import Blocks, Encoders
from pipelines.method.loading import FrozenModels
from pipelines.method.photo import Photo, shapes, too_large
from pipelines.method.tagging import tag_scores, tagger_name, tagger_of
from pipelines.ops.thresholds import Quality, calibrate, expected, label_table, quality
from pipelines.options.stages import CamsOptions, SuperpixelsOptions
from pipelines.options.tag import TagOptions
from pipelines.stores.array_store import ArrayReader, store_exists
from pipelines.stores.files import remove_leftovers
from pipelines.stores.manifest import digest
from pipelines.workdir.commands import command_for
from pipelines.workdir.counts import Counts
from pipelines.workdir.photos import load_unstored
from pipelines.workdir.settings import model_sources, tag_settings
from pipelines.workdir.thresholds import given_thresholds, write_thresholds
from pipelines.workdir.workspace import Workspace

STAGE = "tag"


@dataclass(frozen=True)
class Tags:
    """The files that `write_tags` wrote, and their numbers.

    Attributes:
        path: The label file.
        images: Number of images in it.
        untagged: Number of these without a tag.
        tags: Number of (image, class) pairs.
        thresholds: Thresholds by class name.
        source: Where the thresholds come from, in words.
        labelled: Number of images whose labels were known.
        expected: Expected quality of the tags of further images, estimated on these labels; None without any.
    """

    path: Path
    images: int
    untagged: int
    tags: int
    thresholds: dict[str, float]
    source: str
    labelled: int
    expected: Quality | None


def outputs(workspace: Workspace, *_: object) -> tuple[Path, ...]:
    """Return the stores that `run` writes."""
    return (workspace.tag_scores,)


def run(
    workspace: Workspace,
    superpixels: SuperpixelsOptions,
    cams: CamsOptions,
    tags: TagOptions,
    progress: Progress | None = None,
) -> Counts:
    """Compute the scores of all classes in every image that has none.

    Args:
        workspace: Names the images and the store; labels of the images are not read.
        superpixels: SLIC's options; superpixels are computed in memory and not stored.
        cams: Options of the read-outs, and alignment heads.
        tags: The tagger.
        progress: Receives each image.

    Returns:
        Images done, skipped and failed.

    Raises:
        UsageError: The store was made with other options and ``workspace.force`` is off, or the tagger needs heads.
        TooManyFailures: There are more bad images than allowed; what was computed is kept.
    """
    progress, device = progress or Silent(), resolve_device(workspace.run.device)
    workspace = unlabelled(workspace)
    cams = cams.model_copy(update={"ckpt": workspace.heads(cams.ckpt)})
    if tags.tag_thresholds is not None:
        given_thresholds(workspace.dataset.classes.names, cams, tags)  # a bad file is refused before the images are encoded
    needs = tagger_of(tags, cams).needs(cams)
    sources = model_sources(workspace, needs, cams.ckpt if "alignment" in needs else None)
    settings = tag_settings(workspace, cams, tags, sources)
    if "superpixels" in needs:
        settings["superpixels"] = digest(superpixels.model_dump(mode="json"))

    @cache
    def encoders() -> Encoders:
        models = FrozenModels(sources, device, workspace.run.precision)
        return models.encoders(needs, Blocks(), cams)

    def make(batch: Sequence[Photo]) -> tuple[Sequence[Photo], NDArray[np.float32]]:
        return batch, tag_scores(encoders().encode(batch), cams, tags).cpu().numpy()

    with workspace.output(STAGE, workspace.tag_scores, settings, progress, prepare=encoders) as output:
        if workspace.shard is None:  # a run that was killed while it wrote the label file left these
            for path in (workspace.tags, workspace.thresholds):
                remove_leftovers(workspace.work, path.name)
        todo = output.todo()
        if todo:
            workers = min(resolve_workers(workspace.run.workers), len(workspace.samples))
            with process_pool(workers) as pool:
                photos = output.photos(partial(load_unstored, encoders(), pool, superpixels), todo)
                batches = batches_by(photos, shapes, resolve_batch_size(workspace.run, device))
                for batch, scores in fitting(make, batches, lambda photo: output.made(photo.sample.image_id, too_large(photo))):
                    for photo, own in zip(batch, scores, strict=True):
                        attributes = {"photo": photo.sample.photo} if photo.sample.photo else {}
                        output.writer.add(photo.sample.image_id, own, attributes)
                        output.made(photo.sample.image_id)
    return output.counts


def unlabelled(workspace: Workspace) -> Workspace:
    """Return the workspace with images without labels."""
    return workspace if workspace.photos else replace(workspace, photos=load_unlabelled(workspace.dataset_options))


def write_tags(workspace: Workspace, cams: CamsOptions, tags: TagOptions) -> Tags:
    """Write the label file and its thresholds, from complete scores.

    Args:
        workspace: A work directory whose scores are stored; images with a row in ``--labels`` calibrate the thresholds.
        cams: The options of `run`.
        tags: Thresholds, or the way to choose them.

    Raises:
        UsageError: The label file has none of the images, or the thresholds are of another tagger or class list.
        SsrError: There are no scores.
    """
    workspace = unlabelled(workspace)
    if not store_exists(workspace.tag_scores):
        raise SsrError(f"no scores in {workspace.work}", f"run `{command_for(workspace.work, 'ssr tag')}` first")
    classes, name = workspace.dataset.classes, tagger_name(tags, cams)
    with ArrayReader(workspace.tag_scores) as reader:
        scores, labels = _labelled(workspace, reader)
        if tags.tag_threshold is None and tags.tag_thresholds is None and labels.any():
            source, chosen = "labels", calibrate(scores, labels, tags.class_thresholds)
        else:
            file = "default" if tags.tag_thresholds is None else str(tags.tag_thresholds)
            source = file if tags.tag_threshold is None else "--tag-threshold"
            chosen = given_thresholds(classes.names, cams, tags)
        counts = np.zeros(3, dtype=np.int64)

        def rows() -> Iterator[tuple[str, list[int]]]:
            for sample in workspace.dataset.samples:
                if sample.image_id in reader:
                    found = np.flatnonzero(reader.read(sample.image_id)[0] >= chosen).tolist()
                    counts[:] += 1, not found, len(found)
                    yield sample.image_id, found

        write_tag_file(workspace.tags, rows(), classes)
    worth = None
    if labels.any():
        worth = expected(scores, labels, tags.class_thresholds) if source == "labels" else quality(scores >= chosen, labels)
    images, untagged, pairs = counts.tolist()
    thresholds = dict(zip(classes.names, chosen.tolist(), strict=True))
    more = {} if worth is None else {"expected": worth._asdict()}
    write_thresholds(workspace.thresholds, name, thresholds, source=source, labelled=len(labels), **more)
    return Tags(workspace.tags, images, untagged, pairs, thresholds, source, len(labels), worth)


def _labelled(workspace: Workspace, reader: ArrayReader) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return scores and labels ``(P, C)`` of the P images that have a score and a row in the label file."""
    path, classes = workspace.dataset_options.labels, workspace.dataset.classes
    path = None if holds_tags(path) else path  # tags of an earlier run are no labels to calibrate by
    scores: list[NDArray[np.float32]] = []
    labels: list[tuple[int, ...]] = []
    for image_id, present in iter_label_file(path, classes) if path is not None else ():
        if image_id in reader:
            scores.append(reader.read(image_id)[0])
            labels.append(present)
    if path is not None and not any(labels):
        raise UsageError(
            f"{path} has a label of none of the images that were tagged", "--labels FILE, with rows of some images"
        )
    known = label_table(labels, len(classes.names))
    return np.array(scores, dtype=np.float32).reshape(known.shape), known
