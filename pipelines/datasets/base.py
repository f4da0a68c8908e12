"""What a dataset is to the rest of the toolkit."""

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
        image_id: Unique in the dataset, safe as a file name.
        image_path: Where the image should lie; it may be missing.
        labels: Class indices present, ascending, from 0, background not among them; may be empty.
        orient: The photo is turned as its EXIF says.
        photo: Fingerprint of the file once it was opened; empty before.
    """

    image_id: str
    image_path: Path
    labels: tuple[int, ...]
    orient: bool = False
    photo: str = ""


@dataclass(frozen=True)
class Dataset:
    """Images of one split, in split order.

    Args:
        kind: Name of its layout, such as ``voc``.
        root: Dataset folder.
        split: Split name, or the name of the split file without ``.txt``.
        classes: Its classes.
        samples: Its images.
        mask_folder: Where ground truth lies, None if there is none; never opened here.
        mask_fallback: Second folder for ids that ``mask_folder`` lacks.
        understood: How lists and tables were read where they are not of the plain form, in words.
        passed_over: What was left out, in words.
        tagged: The labels are tags of `ssr tag`, not of people.
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
        """Where an image's ground truth should lie; the file is not opened and may be missing."""
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
        """SHA-256 (hex) over class names and every sample's id and labels, in order; no paths."""
        known = getattr(self.samples, "digest", None)  # a list that is not held has worked it out while it was checked
        if known is not None:
            return str(known)
        content = [self.classes.names, [(sample.image_id, sample.labels) for sample in self.samples]]
        return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()
