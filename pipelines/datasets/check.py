"""Checks that find the faults of a dataset before hours are spent on it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipelines.datasets.base import Dataset, Sample
from pipelines.datasets.image import Header, image_size, load_image, read_header
from pipelines.datasets.image_files import instead_of, listed, why_missing
from pipelines.datasets.names import did_you_mean
from pipelines.errors import ImageError
from pipelines.evaluation.ground_truth import read_mask
from pipelines.evaluation.plausibility import Plausibility, nothing_seen, plausibility

DECODED = 20
"""Number of images of 16 bits that are decoded to find out whether their values have 16 bits."""
DARK = 17
"""Grey level, of 255, below which an image of 16 bits has values of 12 bits or fewer."""
OPENED_MASKS = 400
"""Number of masks whose values are read before a run: enough to recognise their form, and read in seconds."""


class PixelReport:
    """Images whose pixels may be meant otherwise than they are read, found by their headers.

    Args:
        long_side: Images above this long side are counted; 0 counts none.

    Attributes:
        turned: Ids of images whose EXIF states another orientation.
        transparent: Ids of images with transparency, which is dropped.
        print_colours: Ids of CMYK images, whose colour profile is not applied.
        dark: Ids of images of 16 bits whose values are those of 12 bits or fewer.
        larger: Ids of images above ``long_side``.
        largest: ``(H, W)`` of the largest image.
    """

    def __init__(self, long_side: int = 0) -> None:
        self.long_side = long_side
        self.turned: list[str] = []
        self.transparent: list[str] = []
        self.print_colours: list[str] = []
        self.dark: list[str] = []
        self.larger: list[str] = []
        self.largest, self.longest = (0, 0), (0, 0)  # by area; by the longer side, of the larger ones
        self._decoded = 0

    def add(self, sample: Sample, header: Header) -> None:
        """Count an image. A few images of 16 bits are decoded."""
        kinds = {"RGBA": self.transparent, "LA": self.transparent, "PA": self.transparent, "CMYK": self.print_colours}
        if header.mode in kinds:
            kinds[header.mode].append(sample.image_id)
        if header.turned and not sample.orient:
            self.turned.append(sample.image_id)
        if 0 < self.long_side < max(header.size):
            self.larger.append(sample.image_id)
            self.longest = max(self.longest, header.size, key=max)
        if header.size[0] * header.size[1] > self.largest[0] * self.largest[1]:
            self.largest = header.size
        if header.mode.startswith("I;16") and self._decoded < DECODED:
            self._decoded += 1
            try:
                if max(load_image(sample.image_path).getextrema()[0]) < DARK:  # type: ignore[arg-type]
                    self.dark.append(sample.image_id)
            except ImageError:
                pass  # the run reports it


@dataclass(frozen=True)
class DatasetReport:
    """The findings of a check of one split.

    Args:
        images: Number of images listed.
        class_counts: Number of images of each class, by name, in class order; zeros included.
        missing: Ids whose image file is not there.
        unread: Names of files found in place of missing images, in formats that are not read.
        near: Guess at what the first missing image is, as the end of a message.
        near_mask: Guess at what the first missing mask is, as the end of a message.
        unreadable: ``(image_id, reason)`` of images whose header cannot be read.
        unlabelled: Ids without any class.
        missing_masks: Ids without ground truth; None if masks were not checked.
        size_mismatches: ``(image_id, what)`` where mask and image differ in size or the mask's header cannot be read; None if
            masks were not checked.
        bad_masks: ``(image_id, reason)`` of masks that were opened and hold no class numbers; None if masks were not checked.
        truth: Comparison of the labels with the opened masks; None if masks were not checked.
        pixels: Images whose pixels may be meant otherwise than they are read.
    """

    images: int
    class_counts: dict[str, int]
    missing: tuple[str, ...]
    unreadable: tuple[tuple[str, str], ...]
    unlabelled: tuple[str, ...]
    missing_masks: tuple[str, ...] | None = None
    unread: tuple[str, ...] = ()
    near: str = ""
    near_mask: str = ""
    size_mismatches: tuple[tuple[str, str], ...] | None = None
    bad_masks: tuple[tuple[str, str], ...] | None = None
    truth: Plausibility | None = None
    pixels: PixelReport | None = None

    @property
    def ok(self) -> bool:
        """Whether every checked image and mask can be used; images without classes and missing masks are no fault."""
        return not (self.missing or self.unread or self.unreadable or self.size_mismatches or self.bad_masks)


def check_dataset(dataset: Dataset, open_masks: bool = False, long_side: int = 0) -> DatasetReport:
    """Read every image's header, without decoding the image.

    Args:
        dataset: Any dataset.
        open_masks: Also read the headers of ground-truth masks, and the values of `OPENED_MASKS` of them; without it no mask is
            opened.
        long_side: Images above this long side are counted; 0 counts none.
    """
    pixels = PixelReport(long_side)
    counts = dict.fromkeys(dataset.classes.names, 0)
    missing, unread, near = list[str](), list[str](), ""
    unreadable: list[tuple[str, str]] = []
    without: list[str] = []
    mismatches: list[tuple[str, str]] = []
    for sample in dataset.samples:
        for index in sample.labels:
            counts[dataset.classes.names[index]] += 1
        if not sample.image_path.exists():
            other = instead_of(sample.image_path)
            if other is None:
                near = near if missing else why_missing(sample.image_path)
                missing.append(sample.image_id)
            else:
                unread.append(other)
            continue
        try:
            header = read_header(sample.image_path)
        except ImageError as error:
            unreadable.append((sample.image_id, error.message))
            continue
        pixels.add(sample, header)
        if open_masks:
            size = image_size(sample.image_path, sample.orient)
            _check_mask(dataset, sample, size, without, mismatches)
    first_mask = dataset.mask_path(without[0]) if without else None
    truth, bad = look_at_truth(dataset) if open_masks else (None, None)
    other_size = {image_id for image_id, _ in mismatches}
    return DatasetReport(
        images=len(dataset.samples),
        class_counts=counts,
        missing=tuple(missing),
        unread=tuple(unread),
        near=near,
        near_mask=_near_mask(first_mask) if first_mask is not None else "",
        unreadable=tuple(unreadable),
        unlabelled=tuple(sample.image_id for sample in dataset.samples if not sample.labels),
        missing_masks=tuple(without) if open_masks else None,
        size_mismatches=tuple(mismatches) if open_masks else None,
        bad_masks=None if bad is None else tuple(one for one in bad if one[0] not in other_size),
        truth=truth,
        pixels=pixels,
    )


def look_at_truth(dataset: Dataset, most: int = OPENED_MASKS) -> tuple[Plausibility, list[tuple[str, str]]]:
    """Open ground-truth masks, evenly spaced over the dataset, before a long run uses them.

    Args:
        dataset: Any dataset.
        most: Number of masks to open; images without a mask are passed over.

    Returns:
        The comparison of labels and masks, and ``(image_id, reason)`` of masks that cannot be used.
    """
    classes = len(dataset.classes.names)
    truth, bad = nothing_seen(classes), list[tuple[str, str]]()
    count = len(dataset.samples)
    wanted = {index * count // min(most, count) for index in range(min(most, count))}
    for index, sample in enumerate(dataset.samples):
        path = dataset.mask_path(sample.image_id) if index in wanted else None
        if path is None or not path.exists():
            continue
        try:
            truth += plausibility(read_mask(path, classes), classes, sample.labels)
        except ImageError as error:
            bad.append((sample.image_id, str(error)))
    return truth, bad


def _near_mask(path: Path) -> str:
    near = did_you_mean(path.name, list(listed(path.parent)))
    return f"{near} a mask is a PNG of its image's name" if near else ""


def _check_mask(
    dataset: Dataset, sample: Sample, size: tuple[int, int], without: list[str], mismatches: list[tuple[str, str]]
) -> None:
    path = dataset.mask_path(sample.image_id)
    if path is None or not path.exists():
        without.append(sample.image_id)
        return
    try:
        mask = image_size(path)
    except ImageError as error:
        mismatches.append((sample.image_id, error.message))
        return
    if mask != size:
        mismatches.append((sample.image_id, f"image {size[1]}x{size[0]}, mask {mask[1]}x{mask[0]} (width x height)"))
