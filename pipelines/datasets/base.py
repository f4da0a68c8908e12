"""The dataset and its samples, as all other packages use them."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.datasets.classes import ClassList


@dataclass(frozen=True)
class Sample:
    """One image and its image-level labels.

    Args:
        image_id: Id, unique in the dataset and safe as a file name.
        image_path: Path of the image, which may be missing.
        labels: Class indices present, ascending, from 0, without background; may be empty.
        orient: Whether the image is turned as its EXIF says.
        photo: Fingerprint of the image file after it was opened; empty before.
    """

    image_id: str
    image_path: Path
    labels: tuple[int, ...]
    orient: bool = False
    photo: str = ""


@dataclass(frozen=True)
class Dataset:
    """The images of one split, in split order.

    Args:
        kind: Name of its layout, such as ``voc``.
        root: Dataset folder.
        split: Split name, or the name of the split file without ``.txt``.
        classes: Its classes.
        samples: Its images.
        mask_folder: Folder of the ground truth, or None if there is none; never opened here.
        mask_fallback: Second folder for ids that ``mask_folder`` lacks.
        understood: Notes on lists and tables that were read in another form than the plain one.
        passed_over: Notes on what was left out.
        tagged: Whether the labels are tags of `ssr tag` and not labels by people.
    """

    kind: str
    root: Path
    split: str
    classes: ClassList
    samples: Sequence[Sample]
    mask_folder: Path | None
    mask_fallback: Path | None = None
    understood: tuple[str, ...] = ()
    passed_over: tuple[str, ...] = ()
    tagged: bool = False

    def mask_path(self, image_id: str) -> Path | None:
        """Return the path of an image's ground truth; the file is not opened and may be missing."""
        if self.mask_folder is None:
            return None
        path = self.mask_folder / f"{image_id}.png"
        if image_id.isascii() and self.mask_fallback is None:
            return path
        names = (image_id, unicodedata.normalize("NFC", image_id), unicodedata.normalize("NFD", image_id))
        folders = [folder for folder in (self.mask_folder, self.mask_fallback) if folder is not None]
        places = (folder / f"{name}.png" for folder in folders for name in dict.fromkeys(names))
        return next((place for place in places if place.is_file()), path)

    def digest(self) -> str:
        """Return SHA-256 (hex) over class names and every sample's id and labels, in order, without paths."""
        known = getattr(self.samples, "digest", None)  # a list that is not in memory computed it when it was checked
        if known is not None:
            return str(known)
        content = [self.classes.names, [(sample.image_id, sample.labels) for sample in self.samples]]
        return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()
