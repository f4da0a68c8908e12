"""`ssr show`: draws panels of image, superpixels, CAM, refined CAM, mask and, if requested, ground truth, and a page of all."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipelines.datasets.base import Sample
from pipelines.datasets.classes import palette
from pipelines.datasets.image import load_image
from pipelines.errors import ImageError, SsrError, UsageError
from pipelines.evaluation.ground_truth import read_mask
from pipelines.evaluation.plausibility import nothing_seen, plausibility
from pipelines.execution.progress import Progress, Silent
from pipelines.figures.fonts import letters_without_font
from pipelines.figures.page import PageRow, html_page
from pipelines.figures.panel import RGB, contact_sheet, legend, overlay_cam, overlay_mask, overlay_superpixels, panel
from pipelines.ops.label_map import resize_maps
from pipelines.options.stages import ShowOptions
from pipelines.stores.array_store import ArrayReader, store_exists
from pipelines.stores.files import atomic_path
from pipelines.workdir.workspace import Workspace

STAGE = "show"
TRUTH = "ground truth"


@dataclass(frozen=True)
class Shown:
    """The files that `run` wrote.

    Attributes:
        page: The self-contained HTML page.
        sheet: The contact sheet.
        panels: One PNG per image.
        failed: Number of images that could not be drawn.
    """

    page: Path
    sheet: Path
    panels: list[Path]
    failed: int


@dataclass(frozen=True)
class Drawn:
    """Panels in memory.

    Attributes:
        rows: The panels, for an HTML page.
        pictures: The same panels as images.
        colours: Colours of the class names.
        facts: Facts for the head of a page.
        failed: Number of images that could not be drawn.
    """

    rows: list[PageRow]
    pictures: list[Image.Image]
    colours: dict[str, RGB]
    facts: dict[str, str]
    failed: int


def run(workspace: Workspace, options: ShowOptions, progress: Progress | None = None) -> Shown:
    """Draw the outputs of a work directory.

    Args:
        workspace: Names the images and all existing outputs.
        options: Which images are drawn, and whether ground truth is opened.
        progress: Receives each image.

    Returns:
        The files written in ``WORK/show``.

    Raises:
        UsageError: An id is not in the split.
        TooManyFailures: There are more bad images than allowed.
    """
    drawn = draw(workspace, options, progress or Silent())
    folder = workspace.work / "show"
    paths = [folder / f"{row.image_id}.png" for row in drawn.rows]
    for path, picture in zip(paths, drawn.pictures, strict=True):
        _save(picture, path)
    sheet, page = folder / "contact_sheet.png", folder / "index.html"
    _save(contact_sheet(drawn.pictures, options.columns), sheet)
    with atomic_path(page) as temporary:
        html = html_page(f"ssr: {workspace.work.name}", drawn.rows, drawn.facts, drawn.colours)
        temporary.write_text(html, encoding="utf-8")
    return Shown(page, sheet, paths, drawn.failed)


def draw(workspace: Workspace, options: ShowOptions, progress: Progress) -> Drawn:
    """Draw panels of the images that the options name, and write nothing.

    Raises:
        SsrError: No image could be drawn.
        UsageError: An id is not in the split.
        TooManyFailures: There are more bad images than allowed.
    """
    samples = _selected(workspace.dataset.samples, options)
    tally = workspace.tally(STAGE, progress)
    names = workspace.dataset.classes.label_map_names
    rows: list[PageRow] = []
    pictures: list[Image.Image] = []
    with ExitStack() as stack:
        drawer = _Drawer(workspace, options, stack)
        progress.start("show", len(samples))
        for sample in samples:
            try:
                picture = drawer.draw(sample)
            except ImageError as error:
                tally.made(sample.image_id, error)
            else:
                tally.made(sample.image_id)
                pictures.append(picture)
                labels = tuple(names[index + 1] for index in sample.labels)
                rows.append(PageRow(sample.image_id, labels, _jpeg(picture)))
        progress.finish()
    boxes = letters_without_font(names)
    if boxes:
        progress.note(f"class names: no installed font has {boxes!r:.60}, which are drawn as boxes; install one that does")
    warnings = drawer.truth.warnings(names[1:])
    for warning in warnings:
        progress.note(f"ground truth: {warning}")
    if not pictures:
        raise SsrError("no image could be drawn", f"see {tally.failures.path}")
    colours: dict[str, RGB] = {name: tuple(palette()[index].tolist()) for index, name in enumerate(names) if index}
    facts = {
        "dataset": workspace.dataset.kind,
        "split": workspace.dataset.split,
        "images": f"{len(rows)} of {len(workspace.dataset.samples)}",
        "recipe": workspace.recipe or "",
        TRUTH: "; ".join(("shown", *warnings)) if options.gt else "not opened",
    }
    return Drawn(rows, pictures, colours, facts, tally.counts.failed)


class _Drawer:
    """Draws the panel of one image from the outputs that exist."""

    def __init__(self, workspace: Workspace, options: ShowOptions, stack: ExitStack) -> None:
        self._workspace = workspace
        self._options = options
        self._names = workspace.dataset.classes.label_map_names
        self.truth = nothing_seen(len(self._names) - 1)
        self._stores = {
            name: stack.enter_context(ArrayReader(path))
            for name, path in (
                ("superpixels", workspace.superpixels), ("cams", workspace.cams), ("refined", workspace.refined),
            )
            if store_exists(path)
        }  # fmt: skip

    def draw(self, sample: Sample) -> Image.Image:
        """Draw the panel of one image."""
        image = np.asarray(load_image(sample.image_path, sample.orient))  # (H, W, 3)
        tiles: list[tuple[str, NDArray[np.uint8]]] = [("photo", image)]
        shown = np.zeros(image.shape[:2], dtype=np.uint8)
        superpixels = self._read("superpixels", sample)
        if superpixels is not None:
            tiles.append(("superpixels", overlay_superpixels(image, superpixels)))
        for store, title in (("cams", "CAM"), ("refined", "refined")):
            maps = self._read(store, sample)
            if maps is not None:
                resized = resize_maps(maps, (image.shape[0], image.shape[1]))  # (K, H, W)
                for index, heat in zip(sample.labels, resized, strict=False):
                    tiles.append((f"{title}: {self._names[index + 1]}", overlay_cam(image, heat)))
        for path, title in self._masks(sample):
            mask = read_mask(path, len(self._names) - 1)
            if title == TRUTH:
                self.truth += plausibility(mask, len(self._names) - 1, sample.labels)
            if mask.shape != image.shape[:2]:
                raise ImageError(f"{path} is {mask.shape}, the image {image.shape[:2]}")
            tiles.append((title, overlay_mask(image, mask, palette())))
            shown = np.concatenate([shown.ravel(), mask.ravel()])[None]
        return panel(tiles, self._options.height, legend(shown, self._names, palette()))

    def _read(self, store: str, sample: Sample) -> NDArray[Any] | None:
        reader = self._stores.get(store)
        return reader.read(sample.image_id)[0] if reader is not None and sample.image_id in reader else None

    def _masks(self, sample: Sample) -> list[tuple[Path, str]]:
        label_maps = [(self._workspace.masks / f"{sample.image_id}.png", "pseudo-mask")]
        if self._options.gt:
            truth = self._workspace.dataset.mask_path(sample.image_id)
            if truth is None:
                raise UsageError("this dataset has no ground truth", "leave out --gt")
            label_maps.append((truth, TRUTH))
        return [(path, title) for path, title in label_maps if path.is_file()]


def _selected(samples: Sequence[Sample], options: ShowOptions) -> list[Sample]:
    if options.ids:
        by_id = {sample.image_id: sample for sample in samples}
        ids = [image_id.strip() for image_id in options.ids.split(",") if image_id.strip()]
        unknown = [image_id for image_id in ids if image_id not in by_id]
        if not ids:
            raise UsageError("--ids names no image", "--ids ID,ID")
        if unknown:
            raise UsageError(f"{unknown[0]} is not in the split", "--ids")
        return [by_id[image_id] for image_id in ids]
    count = min(options.count, len(samples))
    return [samples[index * len(samples) // count] for index in range(count)]


def _save(picture: Image.Image, path: Path) -> None:
    with atomic_path(path) as temporary:
        picture.save(temporary, format="PNG")


def _jpeg(picture: Image.Image) -> bytes:
    out = io.BytesIO()
    picture.convert("RGB").save(out, format="JPEG", quality=88, optimize=True)
    return out.getvalue()
