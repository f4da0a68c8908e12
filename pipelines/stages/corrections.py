"""`ssr import`: copies label maps that people corrected in another tool into ``WORK/corrected``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelines.corrections import Correction, Source, corrections
from pipelines.datasets.base import Sample
from pipelines.datasets.classes import palette
from pipelines.datasets.image import image_size
from pipelines.errors import ImageError, SsrError, UsageError
from pipelines.execution.interruption import refuse_if_interrupted, until_interrupted
from pipelines.execution.progress import Progress, Silent
from pipelines.options.export import ImportOptions
from pipelines.stores.manifest import Manifest
from pipelines.stores.mask_store import remove_masks, write_mask, written_masks
from pipelines.stores.one_writer import one_writer
from pipelines.workdir.corrected import corrections_manifest
from pipelines.workdir.workspace import Workspace

STAGE = "import"


@dataclass(frozen=True)
class Imported:
    """The result of `run`.

    Attributes:
        folder: All corrected label maps, those of earlier files included.
        done: Number of images imported from this file.
        failed: Number of images whose label map cannot be used.
        total: Number of images in the folder.
        said: Lines on what was passed over, for people.
    """

    folder: Path
    done: int
    failed: int
    total: int
    said: tuple[str, ...]


def run(workspace: Workspace, file: Path, options: ImportOptions, progress: Progress | None = None) -> Imported:
    """Import corrected label maps; those of an image that was imported before are replaced.

    Args:
        workspace: Names the images and classes. With ``force``, corrections of earlier files are removed, once this one has
            given a label map.
        file: File of CVAT, COCO or Label Studio; the content tells which.
        options: Meaning of an image without objects.
        progress: Receives each image.

    Raises:
        UsageError: A class or name is invalid, or there are earlier corrections with other classes.
        SsrError: The file cannot be read, or it is of other images.
        TooManyFailures: There are more bad label maps than allowed; those before are kept.
    """
    progress = progress or Silent()
    dataset, folder = workspace.dataset, workspace.corrected
    samples = {sample.image_id: sample for sample in dataset.samples}
    source = Source(file, dataset.classes)
    tally = workspace.tally(STAGE, progress)
    others: list[str] = []
    seen: set[str] = set()
    empty = 0
    with one_writer(folder, "importing", 0.0):
        before = Manifest.read(folder.with_suffix(".json"))
        replaces = workspace.force
        if not replaces and before is not None and before.settings != corrections_manifest(workspace).settings:
            raise UsageError(f"{folder} has corrections of other classes", "--force removes them, or give another --work")
        progress.start(STAGE, len(samples))
        for image_id, found in until_interrupted(corrections(source)):
            sample = samples.get(image_id)
            if sample is None:
                others.append(image_id)
                continue
            try:
                if isinstance(found, ImageError):
                    raise found
                if image_id in seen:
                    raise ImageError(f"{file} has a second label map of it", "one entry an image")
                seen.add(image_id)
                if not found.objects and options.empty == "skip":
                    empty += 1
                    continue
                label_map = _checked(sample, found)
                if replaces:  # not before, since a file that cannot be used must cost nobody's work
                    remove_masks(folder)
                    replaces = False
                write_mask(folder / f"{image_id}.png", label_map, palette())
                tally.made(image_id)
            except ImageError as error:
                tally.made(image_id, error)
        progress.finish()
        if tally.counts.done:
            corrections_manifest(workspace).write(folder.with_suffix(".json"))
    refuse_if_interrupted()
    if not (tally.counts.done or tally.counts.failed or empty):
        if not others:
            raise SsrError(f"{file} holds no corrected image", "in Label Studio, submit a task before the export")
        raise SsrError(
            f"{file}: none of {len(others)} images is of split {dataset.split}, such as {others[0]!r:.80}",
            "--split, or another --work",
        )
    said = [f"{len(others)} images are not of split {dataset.split}, such as {others[0]!r:.80}"] if others else []
    said += [f"{empty} images without an object are passed over (--empty background takes them)"] if empty else []
    said += [f"{count} shapes of kind {kind} are no masks and are passed over" for kind, count in source.passed_over.items()]
    return Imported(folder, tally.counts.done, tally.counts.failed, len(written_masks(folder)), tuple(said))


def _checked(sample: Sample, found: Correction) -> NDArray[np.uint8]:
    """Return the label map ``(H, W)``, checked against the image's size.

    Raises:
        ImageError: The image is missing, or of another size.
    """
    size = image_size(sample.image_path, sample.orient)
    if not found.objects:
        return np.zeros(size, np.uint8)
    if found.label_map.shape != size:
        raise ImageError(
            f"the corrected label map is {found.label_map.shape}, the image {size} (rows, columns)",
            "a tool that turns images by their EXIF needs --orient here, from the first stage on",
        )
    return found.label_map
