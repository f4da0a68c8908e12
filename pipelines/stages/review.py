"""`ssr review`: pseudo-masks by confidence, the most doubtful first, and what a person said of them. Opens no ground truth."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.datasets.base import Sample
from pipelines.datasets.classes import palette
from pipelines.datasets.image import load_image
from pipelines.datasets.names import listed_name
from pipelines.errors import ImageError, SsrError, UsageError
from pipelines.evaluation.ground_truth import read_mask
from pipelines.execution.progress import Progress, Silent
from pipelines.figures.page_links import ONLY, pages, remove_further
from pipelines.figures.panel import overlay_cam, overlay_mask, panel
from pipelines.figures.review_page import MARKS, Doubtful, review_page
from pipelines.ops.label_map import IGNORE_INDEX, resize_maps
from pipelines.stores.array_store import store_exists
from pipelines.stores.files import atomic_path
from pipelines.stores.mask_store import write_mask, written_masks
from pipelines.stores.one_writer import one_writer
from pipelines.workdir.commands import command_for
from pipelines.workdir.confidences import Confidences
from pipelines.workdir.corrected import corrections_manifest
from pipelines.workdir.workspace import Workspace

STAGE = "review"
HEIGHT = 220
PER_PAGE = 200
"""Masks on a page, unless said otherwise: about 10 MB."""


@dataclass(frozen=True)
class Reviewed:
    """What `run` wrote.

    Attributes:
        table: Every mask, the most doubtful first.
        page: The first page of them, to look at and to mark.
        pages: How many pages there are, each linked with the next.
        masks: Masks in the table.
        shown: Masks on the pages.
        failed: Images that could not be used.
    """

    table: Path
    page: Path
    pages: int
    masks: int
    shown: int
    failed: int


@dataclass(frozen=True)
class Applied:
    """What `apply` did.

    Attributes:
        folder: Corrected masks.
        marks: How many masks were marked as what.
        changed: Images with a corrected mask from this.
        left_out: Those of them all of whose masks are bad: nothing is learned from them.
        taken_back: Images whose corrected mask is gone, because none of their masks is bad any more.
        fix: List of the images to correct, or None if there are none.
    """

    folder: Path
    marks: dict[str, int]
    changed: int
    left_out: int
    taken_back: int
    fix: Path | None


def run(workspace: Workspace, top: int, per_page: int = PER_PAGE, progress: Progress | None = None) -> Reviewed:
    """Write ``WORK/review/review.csv``, ``WORK/review/index.html`` and, of many masks, ``index-2.html`` and so on.

    Pages are drawn and written one after another, so that the pictures of one alone are in memory.

    Args:
        workspace: Its CAMs and pseudo-masks.
        top: Masks on all pages; 0 = all.
        per_page: Masks on a page.
        progress: Receives each image.

    Raises:
        SsrError: There are no masks, or their CAMs are gone.
        TooManyFailures: More bad images than allowed.
    """
    progress, names = progress or Silent(), workspace.dataset.classes.names
    there = written_masks(workspace.masks)
    samples = [sample for sample in workspace.dataset.samples if sample.image_id in there]
    if not samples or not all(map(store_exists, (workspace.cams, workspace.refined))):
        command = command_for(workspace.work, "ssr masks")
        raise SsrError(
            f"expected masks, CAMs and refined CAMs in {workspace.work}, found not all of them", f"run `{command}` first"
        )
    tally = workspace.tally(STAGE, progress)
    found: list[tuple[float, Sample, int]] = []
    with Confidences(workspace) as confidences:
        progress.start(STAGE, len(samples))
        for sample in samples:
            try:
                mask = read_mask(workspace.masks / f"{sample.image_id}.png", len(names))
            except ImageError as error:
                tally.made(sample.image_id, error)
                continue
            found += [(value, sample, index) for index, value in confidences(sample.image_id, mask).items()]
            tally.made(sample.image_id)
        progress.finish()
        found.sort(key=lambda row: (row[0], row[1].image_id, row[2]))
        folder = workspace.work / STAGE
        table, count, shown = folder / "review.csv", 0, 0
        _write_table(table, found, names)
        listed = found[:top] if top else found
        progress.start("review: pictures", len(listed))
        for page, rows in pages(listed, per_page):
            drawn = list(_drawn(workspace, confidences, rows, progress))
            count, shown = page.count, shown + len(drawn)
            summary = {"masks": f"{len(found):,}", "page": f"{page.number} of {page.count}, most doubtful first"}
            with atomic_path(folder / page.file) as temporary:
                text = review_page(f"masks of {workspace.dataset.split}", drawn, summary, page)
                temporary.write_text(text, encoding="utf-8")
        progress.finish()
    remove_further(folder, count)
    return Reviewed(table, folder / ONLY.file, count, len(found), shown, tally.counts.failed)


def apply(workspace: Workspace, files: Sequence[Path]) -> Applied:
    """Take over what a person said: pixels of bad masks become 255 in ``WORK/corrected``, which trainings prefer.

    An image all of whose classes are bad becomes 255 everywhere. Images to fix are listed in ``WORK/review/fix.txt``, which is
    a split for `ssr export`. A mask that was marked bad before and is not now is used again, unless its image was corrected in
    another tool or its mask was made anew meanwhile.

    Args:
        workspace: Its masks.
        files: Saved by the pages, or folders with ``review*.json``; of a mask that several hold, the last mark counts.

    Raises:
        UsageError: No such file, or one of something else.
    """
    marks = _read_marks(workspace, files)
    samples = {sample.image_id: sample for sample in workspace.dataset.samples}
    changed = left_out = taken_back = 0
    names, folder = workspace.dataset.classes.names, workspace.corrected
    with one_writer(folder, "reviewing", 0.0):
        for image_id, classes in marks.items():
            labels, corrected = set(samples[image_id].labels), folder / f"{image_id}.png"
            source, earlier = _marked_before(workspace, corrected, labels)
            bad = {index for index, mark in classes.items() if mark == "bad"} | (earlier - classes.keys())
            if not bad:
                if earlier:
                    corrected.unlink()
                    taken_back += 1
                continue
            mask = read_mask(source, len(names))  # (H, W)
            whole = bad >= labels
            mask[whole | np.isin(mask, [index + 1 for index in bad])] = IGNORE_INDEX
            write_mask(corrected, mask, palette())
            changed, left_out = changed + 1, left_out + whole
        if changed or taken_back:
            corrections_manifest(workspace).write(folder.with_suffix(".json"))
    fix = [image_id for image_id, classes in marks.items() if "fix" in classes.values()]
    listed = workspace.work / STAGE / "fix.txt"
    with atomic_path(listed) as temporary:
        temporary.write_text("".join(f"{listed_name(image_id)}\n" for image_id in fix), encoding="utf-8")
    counts = {mark: sum(list(classes.values()).count(mark) for classes in marks.values()) for mark in MARKS}
    return Applied(folder, counts, changed, left_out, taken_back, listed if fix else None)


def _marked_before(workspace: Workspace, corrected: Path, labels: set[int]) -> tuple[Path, set[int]]:
    """Return the label map that marks apply to, and the classes that are bad by earlier marks.

    A corrected mask that is the pseudo-mask but for whole classes comes from marks alone. Any other one was corrected in
    another tool, or is of an older pseudo-mask: marks apply to it.
    """
    pseudo, classes = workspace.masks / corrected.name, len(workspace.dataset.classes.names)
    if not corrected.is_file():
        return pseudo, set()
    if not pseudo.is_file():
        return corrected, set()
    mask, edited = read_mask(pseudo, classes), read_mask(corrected, classes)  # (H, W)
    if mask.shape != edited.shape:
        return corrected, set()
    if (edited == IGNORE_INDEX).all():
        return pseudo, labels
    bad = {label for label in labels if label + 1 in mask and (edited[mask == label + 1] == IGNORE_INDEX).all()}
    expected = np.where(np.isin(mask, [label + 1 for label in bad]), IGNORE_INDEX, mask)  # (H, W)
    return (pseudo, bad) if np.array_equal(expected, edited) else (corrected, set())


def _read_marks(workspace: Workspace, files: Sequence[Path]) -> dict[str, dict[int, str]]:
    """Image id -> class index -> mark."""
    ids = {sample.image_id for sample in workspace.dataset.samples}
    index = {name: number for number, name in enumerate(workspace.dataset.classes.names)}
    marks: dict[str, dict[int, str]] = {}
    for file in chain.from_iterable(map(_files, files)):
        for image_id, name, mark in _rows(file):
            for what, value, known in (("image", image_id, ids), ("class", name, index), ("mark", mark, MARKS)):
                if not isinstance(value, str) or value not in known:
                    raise UsageError(f"{file}: no {what} {value!r:.80} in {workspace.work}", "--apply, or another --work")
            marks.setdefault(image_id, {})[index[name]] = mark
    return marks


def _files(path: Path) -> list[Path]:
    """The file, or what pages have saved in a folder."""
    if not path.is_dir():
        return [path]
    if not (found := sorted(path.glob("review*.json"))):
        raise UsageError(f"{path}: expected marks that pages of `ssr review` saved, found no review*.json", "--apply")
    return found


def _rows(file: Path) -> list[tuple[Any, Any, Any]]:
    """Image, class and mark as a page saved them, unchecked."""
    expected = 'a list of {"image", "class", "mark"} that the page of `ssr review` saved'
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
        return [(row["image"], row["class"], row["mark"]) for row in rows]
    except OSError as error:
        raise UsageError(f"cannot read the marks {file}: {error.strerror}", "--apply") from error
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise UsageError(f"{file}: expected {expected}", "--apply") from error


def _write_table(path: Path, found: Sequence[tuple[float, Sample, int]], names: Sequence[str]) -> None:
    lowest: dict[str, float] = {}
    for value, sample, _ in found:  # in order of confidence
        lowest.setdefault(sample.image_id, value)
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("image", "class", "confidence", "image's lowest"))
    for value, sample, index in found:
        writer.writerow((sample.image_id, names[index], f"{value:.4f}", f"{lowest[sample.image_id]:.4f}"))
    with atomic_path(path) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8", newline="")


def _drawn(
    workspace: Workspace, confidences: Confidences, found: Sequence[tuple[float, Sample, int]], progress: Progress
) -> Iterator[Doubtful]:
    names = workspace.dataset.classes.names
    for value, sample, index in found:
        progress.advance()
        try:
            image = np.asarray(load_image(sample.image_path, sample.orient))  # (H, W, 3)
            mask = read_mask(workspace.masks / f"{sample.image_id}.png", len(names))  # (H, W)
        except ImageError:  # gone since it was scored
            continue
        if mask.shape != image.shape[:2]:
            continue
        alone = np.where(mask == index + 1, mask, 0).astype(np.uint8)  # (H, W)
        tiles = [("photo", image), (f"mask: {names[index]}", overlay_mask(image, alone, palette()))]
        if (heat := confidences.refined(sample.image_id, index)) is not None:  # (h, w)
            tiles.append(("refined CAM", overlay_cam(image, resize_maps(heat[None], (mask.shape[0], mask.shape[1]))[0])))
        picture = panel(tiles, HEIGHT)
        data = io.BytesIO()
        picture.save(data, format="JPEG", quality=82)
        others = tuple(names[other] for other in sample.labels if other != index)
        yield Doubtful(sample.image_id, names[index], value, others, data.getvalue(), picture.size)
