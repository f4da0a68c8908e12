"""`ssr export`: writes label maps of a work directory, or any folder of them, in the format of another tool."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelines.datasets.base import Dataset, Sample
from pipelines.datasets.classes import load_class_list
from pipelines.datasets.folder import load_photos
from pipelines.datasets.image import image_size, read_header
from pipelines.errors import ImageError, SsrError, UsageError
from pipelines.evaluation.ground_truth import read_mask
from pipelines.execution.interruption import refuse_if_interrupted, until_interrupted
from pipelines.execution.pool import prefetch
from pipelines.execution.progress import Progress, Silent
from pipelines.exports import format_of
from pipelines.exports.base import IGNORE_NAME, Format, Item, Plan
from pipelines.ops.label_map import IGNORE_INDEX
from pipelines.ops.regions import without_specks
from pipelines.options.export import ExportOptions
from pipelines.stores.files import new_folder
from pipelines.stores.manifest import EXPORT_FILE, Manifest
from pipelines.stores.mask_store import written_masks
from pipelines.stores.shard import Shard
from pipelines.workdir.commands import command_for
from pipelines.workdir.confidences import Confidences
from pipelines.workdir.workspace import Workspace

STAGE = "export"
_IN_WORK = {
    "masks": "ssr refine",
    "predictions": "ssr predict",
    "retrained": "ssr predict --model retrained",
    "corrected": "ssr import",
}
_OF_SOME = ("instances", "polygons", "simplify", "holes", "image_url")
"""Options that have a meaning for some formats only."""


@dataclass(frozen=True)
class Exported:
    """The result of `run`.

    Attributes:
        folder: Folder of the export.
        done: Number of images in it.
        failed: Number of images left out because they or their label maps cannot be used.
        said: Lines on the treatment of unsure pixels, holes and so on, and on the use of the export.
    """

    folder: Path
    done: int
    failed: int
    said: tuple[str, ...]


def run(workspace: Workspace, options: ExportOptions, progress: Progress | None = None) -> Exported:
    """Write an export; an existing one is replaced when the new one is complete.

    Args:
        workspace: Names the images and classes.
        options: Format, label maps and how to write them.
        progress: Receives each image.

    Raises:
        UsageError: An option does not fit the format, or the target folder is no export.
        SsrError: There are no label maps.
        TooManyFailures: There are more bad images than allowed; nothing is written then.
    """
    progress = progress or Silent()
    if not options.format:
        raise UsageError("expected a format, found none; `ssr export --help` lists them", "ssr export FORMAT")
    form = format_of(options.format)
    ignore = _checked(form, options)
    source = label_map_folder(workspace, options)
    if options.images is not None:
        names = _class_names(workspace, source)
        workspace = replace(workspace, photos=load_photos(options.images, names, workspace.dataset_options.orient))
    dataset = workspace.dataset
    if ignore == "class" and IGNORE_NAME in dataset.classes.names:
        raise UsageError(f"{IGNORE_NAME} is a class already", "--ignore background")
    images = _Images(dataset, source, Shard.parse(options.shard) if options.shard else Shard(0, 1))
    if not images.count:
        found = f"expected label maps of split {dataset.split} in {source}, found {images.found()}"
        raise SsrError(found, _cure(workspace, options))
    if images.held < len(dataset.samples):
        progress.note(f"{images.held} of {len(dataset.samples)} images have a label map; the others are left out")
    target = export_folder(workspace, options)
    if target.exists() and (not target.is_dir() or (any(target.iterdir()) and not (target / EXPORT_FILE).is_file())):
        raise UsageError(f"{target} is no export, and is not overwritten", "--output FOLDER, a new one")
    tally = workspace.tally(f"{STAGE} {options.format}", progress)
    known = form.confidence and options.what == "masks" and not options.images
    with Confidences(workspace if known else None) as confidence, new_folder(target) as folder:
        seen = _Seen(ignore)
        reader = _Reader(dataset, source, options, ignore, form.photos and options.photos != "none")
        plan = Plan(
            folder=folder,
            split=dataset.split,
            classes=dataset.classes,
            options=options,
            ignore=ignore,
            suffix=next(iter(images.suffixes)) if len(images.suffixes) == 1 else None,
            photo_root=Path(os.path.commonpath(images.folders)),
            place=target.absolute(),
        )
        progress.start(f"{STAGE} {options.format}", images.count)
        with form.write(plan) as add:
            for (number, sample), read in prefetch(reader, until_interrupted(images)):
                try:
                    if isinstance(read, ImageError):
                        raise read
                    lowest = _lowest(confidence(sample.image_id, read.label_map))
                    add(Item(number, sample.image_id, sample.image_path, read.label_map, lowest))
                    seen.add(read)
                    tally.made(sample.image_id)
                except ImageError as error:
                    tally.made(sample.image_id, error)
            refuse_if_interrupted("nothing was written; run the same command again")
            if not tally.counts.done:
                raise SsrError(f"none of {images.count} label maps could be exported", f"see {tally.failures.path}")
        progress.finish()
        settings = {
            **options.model_dump(mode="json", exclude={"output"}),
            "ignore": ignore,
            "classes": list(dataset.classes.names),
        }
        manifest = workspace.manifest(STAGE, settings)
        manifest.complete, manifest.counts = True, tally.counts.as_dict()
        manifest.write(plan.folder / EXPORT_FILE)
    return Exported(target, tally.counts.done, tally.counts.failed, (*seen.said(), *plan.said))


def label_map_folder(workspace: Workspace, options: ExportOptions) -> Path:
    """Return the folder of the label maps."""
    if options.what == "masks":
        return workspace.masks
    if options.what == "corrected":
        return workspace.corrected
    if options.what in _IN_WORK:
        return workspace.work / options.what / workspace.dataset.split
    return Path(options.what)


def export_folder(workspace: Workspace, options: ExportOptions) -> Path:
    """Return the folder of the export."""
    if options.output is not None:
        return options.output
    what = () if options.what == "masks" else (Path(options.what).name,)
    shard = (Shard.parse(options.shard).name,) if options.shard else ()
    return workspace.work / "exports" / "-".join((options.format, workspace.dataset.split, *what, *shard))


def _checked(form: Format, options: ExportOptions) -> str:
    """Return the treatment of unsure pixels; an option without a meaning for the format is refused."""
    for name in _OF_SOME:
        given = getattr(options, name) != type(options).model_fields[name].default
        if given and name not in form.takes:
            raise UsageError(
                f"--{name.replace('_', '-')} has no meaning for {options.format}", "leave it out, or another format"
            )
    ignore = form.ignore[0] if options.ignore == "auto" else options.ignore
    if ignore not in form.ignore:
        raise UsageError(f"{options.format} takes unsure pixels as {' or '.join(form.ignore)}, not as {ignore}", "--ignore")
    return ignore


def _class_names(workspace: Workspace, source: Path) -> tuple[str, ...]:
    """Return the classes of a folder of label maps without a dataset: those of ``--classes``, or those of its manifest."""
    if workspace.dataset_options.classes is not None:
        return load_class_list(workspace.dataset_options.classes).names
    manifest = Manifest.read(source.resolve().with_suffix(".json"))
    names = manifest.settings.get("classes") if manifest is not None else None
    if not isinstance(names, list):
        raise UsageError(f"expected the classes of {source}, found no manifest with them", "--classes FILE")
    return tuple(map(str, names))


def _cure(workspace: Workspace, options: ExportOptions) -> str:
    command = _IN_WORK.get(options.what)
    return f"run `{command_for(workspace.work, command)}` first" if command else "a folder of PNGs named after the image ids"


class _Images:
    """Images of the work list that have a label map, with their places in it. The list is iterated and never held in memory.

    Args:
        dataset: The work list.
        source: Folder of label maps.
        shard: The shard that is exported.

    Attributes:
        held: Number of images with a label map.
        count: Number of those in the shard.
        suffixes: Suffixes of their image files.
        folders: Folders of these files.
    """

    def __init__(self, dataset: Dataset, source: Path, shard: Shard) -> None:
        self._dataset, self._source, self._shard = dataset, source, shard
        self.held = self.count = 0
        self.suffixes: set[str] = set()
        self.folders: set[Path] = set()
        for _, sample in self._all():
            self.held += 1
            if shard.holds(sample.image_id):
                self.count += 1
                self.suffixes.add(sample.image_path.suffix)
                self.folders.add(sample.image_path.absolute().parent)

    def _all(self) -> Iterator[tuple[int, Sample]]:
        for number, sample in enumerate(self._dataset.samples, start=1):
            if (self._source / f"{sample.image_id}.png").is_file():
                yield number, sample

    def __iter__(self) -> Iterator[tuple[int, Sample]]:
        return (numbered for numbered in self._all() if self._shard.holds(numbered[1].image_id))

    def found(self) -> str:
        """Describe what there is instead of label maps to export."""
        others = len(written_masks(self._source))
        return "none of this shard" if self.held else f"{others} PNGs of other images" if others else "none"


@dataclass(frozen=True)
class _Read:
    """A label map as it is exported, its number of unsure pixels, and whether EXIF turns its image."""

    label_map: NDArray[np.uint8]
    unsure: int
    turned: bool


@dataclass(frozen=True)
class _Reader:
    """A reader of label maps that runs in threads."""

    dataset: Dataset
    source: Path
    options: ExportOptions
    ignore: str
    photos: bool

    def __call__(self, numbered: tuple[int, Sample]) -> _Read:
        _, sample = numbered
        mask, turned = read_mask(self.source / f"{sample.image_id}.png", len(self.dataset.classes.names)), False  # (H, W)
        if self.photos or sample.image_path.is_file():
            size = image_size(sample.image_path, sample.orient)
            if size != mask.shape:
                raise ImageError(f"the label map is {mask.shape}, the image {size} (rows, columns)")
            turned = not sample.orient and read_header(sample.image_path).turned
        mask = without_specks(mask, self.options.min_area)
        unsure = mask == IGNORE_INDEX
        if self.ignore != "keep":
            mask[unsure] = len(self.dataset.classes.names) + 1 if self.ignore == "class" else 0
        return _Read(mask, int(unsure.sum()), turned)


@dataclass
class _Seen:
    """A sum of what was found in the label maps of an export."""

    ignore: str
    unsure: int = 0
    pixels: int = 0
    turned: int = 0

    def add(self, read: _Read) -> None:
        """Add a label map."""
        self.unsure, self.pixels = self.unsure + read.unsure, self.pixels + read.label_map.size
        self.turned += read.turned

    def said(self) -> Iterator[str]:
        """Yield lines on the treatment of unsure pixels, and on images that other tools turn by their EXIF."""
        became = {"background": "background", "class": f"the class {IGNORE_NAME}", "keep": "255"}[self.ignore]
        yield f"unsure pixels (255), {self.unsure / max(1, self.pixels):.1%} of all, are written as {became} (--ignore)"
        if self.turned:
            yield (
                f"{self.turned} images are turned by their EXIF: tools that apply it show them otherwise than their masks; "
                "turn the files (`exiftran -ai *.jpg`), or make masks with --orient"
            )


def _lowest(confidences: dict[int, float]) -> float | None:
    """Return the confidence of a label map, which is that of its least confident class."""
    return round(min(confidences.values()), 4) if confidences else None
