"""Formats by themselves; a zoo of images through whole stages is in tests/hostile/test_images.py."""

from __future__ import annotations

import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.datasets.image import image_size, load_image, read_header
from pipelines.errors import ImageError


def png_header(path: Path, width: int, height: int) -> Path:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""))
    return path


def refused(path: Path, message: str, size_too: bool = True) -> None:
    for read in (load_image, image_size) if size_too else (load_image,):
        with pytest.raises(ImageError, match=message) as caught:
            read(path)
        assert str(caught.value).startswith(str(path))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bits_are_scaled_not_saturated(tmp_path: Path, suffix: str) -> None:
    levels = np.array([[0, 257, 30000, 65535, 129, 128]], np.uint16)
    Image.fromarray(levels).save(tmp_path / f"a.{suffix}")
    image = np.asarray(load_image(tmp_path / f"a.{suffix}"))
    assert image[..., 0].tolist() == [[0, 1, 117, 255, 1, 0]]
    assert (image == image[..., :1]).all()


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_32_bits_are_refused(tmp_path: Path, dtype: type) -> None:
    Image.fromarray(np.ones((2, 2), dtype)).save(tmp_path / "a.tif")
    refused(tmp_path / "a.tif", "expected 8 or 16 bits a channel, found 32", size_too=False)


@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)])
def test_cmyk_jpeg_has_its_colours(tmp_path: Path, colour: tuple[int, int, int]) -> None:
    path = tmp_path / "a.jpg"
    Image.new("RGB", (16, 16), colour).convert("CMYK").save(path, quality=100)
    with Image.open(path) as stored:
        assert stored.mode == "CMYK"
    assert np.abs(np.asarray(load_image(path)).astype(int) - colour).max() <= 3


@pytest.mark.parametrize(
    ("suffix", "keep"), [("jpg", 0.5), ("png", 0.5), ("webp", 0.5), ("bmp", 0.5), ("tif", 0.5), ("jpg", 0.02)]
)
def test_truncated_files(tmp_path: Path, suffix: str, keep: float) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    refused(path, "cannot read the image|broken image|found a file that starts", size_too=False)


@pytest.mark.parametrize("size", [(40_000, 40_000), (11_000, 10_000), (2_000_000_000, 1)])
def test_bombs_are_refused_before_decoding(tmp_path: Path, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(Image.Image, "load", load)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        refused(png_header(tmp_path / "a.png", *size), "expected at most 100000000 pixels|refused before decoding")


def test_own_limit(tmp_path: Path) -> None:
    Image.new("RGB", (20, 10)).save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png", max_pixels=200).size == (20, 10)
    with pytest.raises(ImageError, match="expected at most 199 pixels, found 20 x 10"):
        load_image(tmp_path / "a.png", max_pixels=199)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orient_turns_as_exif_says(tmp_path: Path, orientation: int) -> None:
    pixels = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    meant = {
        1: pixels, 2: pixels[:, ::-1], 3: pixels[::-1, ::-1], 4: pixels[::-1], 5: pixels.transpose(1, 0, 2),
        6: pixels[::-1].transpose(1, 0, 2), 7: pixels[::-1, ::-1].transpose(1, 0, 2), 8: pixels[:, ::-1].transpose(1, 0, 2),
    }[orientation]  # fmt: skip
    np.testing.assert_array_equal(np.asarray(load_image(tmp_path / "a.png", orient=True)), meant)
    np.testing.assert_array_equal(np.asarray(load_image(tmp_path / "a.png")), pixels)
    assert image_size(tmp_path / "a.png", orient=True) == meant.shape[:2]
    assert read_header(tmp_path / "a.png").turned == (orientation > 1)
