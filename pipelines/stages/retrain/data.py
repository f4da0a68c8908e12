"""The training data of `ssr retrain`: sound label maps, and the lists and links by which mmsegmentation finds them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipelines.datasets.base import Dataset, Sample
from pipelines.datasets.image import load_image
from pipelines.errors import ImageError, SsrError, UsageError
from pipelines.evaluation.ground_truth import read_mask
from pipelines.evaluation.plausibility import Plausibility, nothing_seen, plausibility
from pipelines.execution.failures import Failures
from pipelines.execution.pool import prefetch
from pipelines.execution.progress import Progress
from pipelines.mmsegmentation.config import SplitFiles
from pipelines.ops.label_map import IGNORE_INDEX
from pipelines.stores.files import atomic_path
from pipelines.stores.manifest import Manifest
from pipelines.stores.mask_store import written_masks
from pipelines.workdir.corrected import Corrected


@dataclass(frozen=True)
class LabelMaps:
    """Images with one label map each.

    Attributes:
        samples: The images.
        paths: Their label maps.
        counts: Number of pixels of each class, background first, ``(C + 1,)`` int64.
        ignored: Share of all pixels with value 255.
        truth: Comparison of labels and label maps.
    """

    samples: tuple[Sample, ...]
    paths: tuple[Path, ...]
    counts: NDArray[np.int64]
    ignored: float
    truth: Plausibility

    def class_weights(self) -> list[float]:
        """Square root of each class's rarity, 1 on average over the pixels; a class without pixels has weight 1."""
        share = self.counts / self.counts.sum()
        weights = np.where(share > 0, 1 / np.sqrt(np.maximum(share, 1e-12)), 0)
        weights /= (weights * share).sum()
        return [round(float(weight), 4) if n else 1.0 for weight, n in zip(weights, self.counts, strict=True)]


def pseudo_masks(dataset: Dataset, folder: Path, asked_for: bool, corrected: Corrected) -> list[tuple[Sample, Path]]:
    """Return the images that have a pseudo-mask or a corrected mask; the latter is preferred.

    Raises:
        SsrError: No image has one.
    """
    there = written_masks(folder)
    paths = [(sample, corrected.path(sample.image_id)) for sample in dataset.samples]
    found = [(sample, own or folder / f"{sample.image_id}.png") for sample, own in paths if own or sample.image_id in there]
    if not found:
        held = f"{len(there)} PNGs of other images" if there else "none"
        hint = "--masks FOLDER" if asked_for else "run `ssr refine` first, or give --masks FOLDER"
        raise SsrError(f"expected pseudo-masks of split {dataset.split} in {folder}, found {held}", hint)
    return found


def check_pseudo(dataset: Dataset, folder: Path) -> None:
    """Refuse masks that would present an upper bound as a weakly supervised result.

    Raises:
        UsageError: The folder holds ground truth, or label maps of a model that was trained on ground truth.
    """
    truths = {path.resolve() for path in (dataset.mask_folder, dataset.mask_fallback) if path is not None}
    if folder.resolve() in truths:
        raise UsageError(f"{folder} is the dataset's ground truth", "--supervision masks, which every output records")
    path = folder.resolve().with_suffix(".json")
    manifest = Manifest.read(path) if path.is_file() and written_masks(folder) else None
    if manifest is not None and manifest.settings.get("supervision") == "masks":
        raise UsageError(f"{folder} comes from a model that was trained on ground truth", "--masks, of `ssr refine`")


def ground_truth(dataset: Dataset, flag: str) -> list[tuple[Sample, Path]]:
    """Return all images with their ground truth.

    Raises:
        UsageError: The split has no ground truth.
    """
    if dataset.mask_folder is None or not dataset.mask_folder.is_dir():
        raise UsageError(f"split {dataset.split} has no ground-truth masks", flag)
    paths = [(sample, dataset.mask_path(sample.image_id)) for sample in dataset.samples]
    return [(sample, path) for sample, path in paths if path is not None]


def checked(
    pairs: Sequence[tuple[Sample, Path]], classes: Sequence[str], failures: Failures | None, progress: Progress
) -> LabelMaps:
    """Open every label map once, check sizes and class numbers, and count the pixels of each class.

    Args:
        pairs: Images and label maps.
        classes: Foreground classes.
        failures: Log for bad images and label maps, which are left out; None: bad ones are an error.
        progress: Receives each image.

    Returns:
        The sound label maps.

    Raises:
        TooManyFailures: There are more bad ones than allowed.
        SsrError: No label map is left, or one is bad and ``failures`` is None.
    """
    by_id = {sample.image_id: path for sample, path in pairs}
    counts, ignored, truth = np.zeros(len(classes) + 1, np.int64), 0, nothing_seen(len(classes))
    samples: list[Sample] = []
    progress.start("check masks", len(pairs))
    for sample, found in prefetch(lambda sample: _histogram(sample, by_id[sample.image_id], classes), [s for s, _ in pairs]):
        progress.advance()
        if isinstance(found, ImageError):
            if failures is None:
                raise SsrError(f"{sample.image_id}: {found.message}", "mend it, or leave --val-split out")
            failures.add(sample.image_id, found)
            continue
        samples.append(sample)
        histogram, seen = found
        counts += histogram[: len(counts)]
        ignored += int(histogram[IGNORE_INDEX])
        truth += seen
    progress.finish()
    if not counts.sum():
        hint = "--val-split" if failures is None else "--masks FOLDER"
        raise SsrError(f"none of {len(pairs)} label maps is sound and has a labelled pixel", hint)
    paths = tuple(by_id[sample.image_id] for sample in samples)
    return LabelMaps(tuple(samples), paths, counts, ignored / (ignored + int(counts.sum())), truth)


def split_files(name: str, samples: Sequence[Sample], masks: Sequence[Path], folder: Path) -> SplitFiles:
    """Return images and label maps in the form that mmsegmentation finds.

    mmsegmentation expects one folder and one suffix of images, and label maps of equal names. A dataset of this form is used
    in place; for any other, links are made.

    Args:
        name: Name of the split.
        samples: Images.
        masks: Their label maps.
        folder: Folder for the list of names, and for links.
    """
    places = Counter((sample.image_path.parent, sample.image_path.suffix) for sample in samples)
    uniform = len(places) == 1 and all(sample.image_path.stem == sample.image_id for sample in samples)
    images, suffix = next(iter(places))
    if not uniform:
        images, suffix = folder / f"{name}_images", ".jpg"  # the content, not the name, decides how the file is read
        _link(images, {f"{sample.image_id}{suffix}": sample.image_path for sample in samples})
    mask_folder = masks[0].parent
    if any(path != mask_folder / f"{sample.image_id}.png" for sample, path in zip(samples, masks, strict=True)):
        mask_folder = folder / f"{name}_masks"
        _link(mask_folder, {f"{sample.image_id}.png": path for sample, path in zip(samples, masks, strict=True)})
    with atomic_path(folder / f"{name}.txt") as temporary:
        temporary.write_text("".join(f"{sample.image_id}\n" for sample in samples), encoding="utf-8")
    return SplitFiles((folder / f"{name}.txt").resolve(), images.resolve(), mask_folder.resolve(), suffix)


def _histogram(sample: Sample, path: Path, classes: Sequence[str]) -> tuple[NDArray[np.int64], Plausibility]:
    """Return the number of pixels of each value ``(256,)``, and the comparison of labels and mask."""
    mask = read_mask(path, len(classes))  # (H, W)
    width, height = load_image(sample.image_path, sample.orient).size  # decoded, because bad files stop mmengine's readers
    if min(width, height) < 2:
        raise ImageError(f"{sample.image_path} is {width} x {height}, too thin for mmsegmentation")
    if mask.shape != (height, width):
        raise ImageError(
            f"{path} is {mask.shape[1]} x {mask.shape[0]}, its image {width} x {height}",
            "ssr refine --force, if it is its pseudo-mask",
        )
    return np.bincount(mask.ravel(), minlength=256), plausibility(mask, len(classes), sample.labels)


def _link(folder: Path, targets: dict[str, Path]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        if old.is_symlink() and old.name not in targets:
            old.unlink()
    for name, target in targets.items():
        path, wanted = folder / name, target.resolve()
        if path.is_symlink() and path.readlink() == wanted:
            continue
        path.unlink(missing_ok=True)
        path.symlink_to(wanted)
