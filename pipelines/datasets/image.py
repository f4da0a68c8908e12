"""Decoding of image files to RGB pixels, with one clear line of error for a file that cannot be read."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from pipelines.datasets.image_files import why_missing
from pipelines.errors import ImageError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
MAX_PIXELS = 100_000_000
_ORIENTATION = 0x0112
"""EXIF's tag of the orientation."""

_CONVERT = "convert it, e.g. `mogrify -format jpg FILE`; an error page or a half download must be fetched again"
_OTHER_FORMATS = (
    (0, b"GIF8", "a GIF"), (4, b"ftypavif", "an AVIF"), (4, b"ftypavis", "an AVIF"), (4, b"ftyphei", "a HEIC"),
    (4, b"ftypheic", "a HEIC"), (4, b"ftypmif1", "a HEIC"), (4, b"ftyphevc", "a HEIC"), (0, b"\0\0\0\x0cjP", "a JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "a JPEG 2000"), (0, b"\xff\x0a", "a JPEG XL"), (4, b"JXL ", "a JPEG XL"), (0, b"%PDF", "a PDF"),
    (0, b"8BPS", "a Photoshop file"), (0, b"<svg", "an SVG"), (0, b"<!DOCTYPE", "a web page"), (0, b"<html", "a web page"),
    (0, b"version https", "a pointer of Git LFS in place of the file"), (0, b"PK\x03\x04", "a ZIP archive"),
)  # fmt: skip
"""Place, bytes and name of other formats that occur under image names."""

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # `open_image` has its own limit, with an error


def load_image(path: Path, orient: bool = False, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode a JPEG, PNG, WEBP, BMP or TIFF, recognised by content and not by name.

    EXIF orientation is not applied, because VOC's and COCO's masks are for the pixels as stored. (Pillow turns TIFF only.)
    Greyscale of 16 bits is divided by 257; transparency is dropped, not composited; CMYK is converted without its ICC profile.

    Args:
        path: Image file.
        orient: Whether the image is turned and mirrored as its EXIF says.
        max_pixels: Larger images are refused before decoding.

    Returns:
        RGB, 8 bits, fully decoded.

    Raises:
        ImageError: Names the file and what was found.
    """
    with open_image(path, max_pixels=max_pixels) as image:
        image.load()
        if orient and turned(image):
            image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I;16"):
            levels = (np.asarray(image).astype(np.uint32) + 128) // 257  # convert("RGB") would cut off at 255
            return Image.fromarray(levels.astype(np.uint8)).convert("RGB")
        if image.mode in {"I", "F"}:
            raise ImageError(f"{path}: expected 8 or 16 bits a channel, found 32 (mode {image.mode})")
        if image.mode == "P" and "transparency" in image.info:
            return image.convert("RGBA").convert("RGB")  # a direct conversion to RGB warns
        return image.convert("RGB")


def fingerprint(path: Path) -> str:
    """Return size and CRC-32 of a file, by which a replaced file is noticed; empty if it cannot be read."""
    checksum = size = 0
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                checksum, size = zlib.crc32(block, checksum), size + len(block)
    except OSError:
        return ""
    return f"{size}-{checksum:08x}"


@dataclass(frozen=True)
class Header:
    """The header of an image.

    Attributes:
        size: ``(height, width)`` in pixels, as stored.
        turned: Whether EXIF states another orientation.
        mode: Pillow's name of its pixels.
    """

    size: tuple[int, int]
    turned: bool
    mode: str


def read_header(path: Path) -> Header:
    """Read the header of an image without decoding it; errors as in `load_image`."""
    with open_image(path, checked=False) as image:
        if image.mode in {"I", "F"}:
            raise ImageError(f"{path}: expected 8 or 16 bits a channel, found 32 (mode {image.mode})")
        return Header((image.height, image.width), turned(image), image.mode)


def turned(image: Image.Image) -> bool:
    """Return whether EXIF states another orientation than that of the pixels as read; Pillow itself turns TIFF."""
    if image.format == "TIFF":
        return False
    try:
        return image.getexif().get(_ORIENTATION, 1) in range(2, 9)
    except Exception:  # EXIF may hold anything, and the pixels can be read nevertheless
        return False


def image_size(path: Path, orient: bool = False) -> tuple[int, int]:
    """Read ``(height, width)`` in pixels from the header alone; errors as in `load_image`."""
    with open_image(path, checked=False) as image:
        quarter = orient and turned(image) and int(image.getexif()[_ORIENTATION]) >= 5
        return (image.width, image.height) if quarter else (image.height, image.width)


@contextmanager
def open_image(
    path: Path, formats: tuple[str, ...] = FORMATS, max_pixels: int = MAX_PIXELS, checked: bool = True
) -> Iterator[Image.Image]:
    """Open an image file lazily; every error until the block ends becomes an `ImageError`.

    With ``checked``, a PNG's checksums are compared first, because decoding alone ignores those of the pixels.
    """
    try:
        if path.exists() and not path.is_file():
            raise ImageError(f"{path}: expected an image, found {'a folder' if path.is_dir() else 'no regular file'}")
        if checked:
            _verify(path, formats)
        with Image.open(path, formats=formats) as image:
            if image.width * image.height > max_pixels:
                raise ImageError(f"{path}: expected at most {max_pixels} pixels, found {image.width} x {image.height}")
            if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":  # MPO: a camera's JPEG with a preview behind it
                raise ImageError(f"{path}: expected one image, found {getattr(image, 'n_frames', 1)} frames")
            yield image
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError(f"{path}: expected {', '.join(formats)}, found {_found(path)}", _CONVERT) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"{path}: refused before decoding: {error}") from None
    except FileNotFoundError as error:
        raise ImageError(f"{path}: cannot read the image: {error.strerror}{why_missing(path)}") from None
    except OSError as error:
        raise ImageError(f"{path}: cannot read the image: {error.strerror or error}") from None
    except Exception as error:  # Pillow's decoders raise nearly any error on a broken file
        raise ImageError(f"{path}: broken image: {type(error).__name__}: {' '.join(str(error).split())}") from None


def _verify(path: Path, formats: tuple[str, ...]) -> None:
    with Image.open(path, formats=formats) as image:  # opened for this alone, because Pillow closes what it has verified
        if image.format == "PNG":
            image.verify()


def _found(path: Path) -> str:
    """Name what a file is that is no image of a readable format, by its first bytes."""
    with path.open("rb") as file:
        start = file.read(16)
    name = next((f", {name}" for place, mark, name in _OTHER_FORMATS if start[place:].startswith(mark)), "")
    return f"a file that starts with {start[:8]!r}{name}" if start else "an empty file"
