from __future__ import annotations

import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.datasets.image import image_size, load_image
from pipelines.errors import ImageError

RGB = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)


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


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "webp"])
def test_lossless_formats_keep_every_pixel(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(RGB).save(path, lossless=True)
    image = load_image(path)
    assert (image.mode, image.size) == ("RGB", (7, 5))
    np.testing.assert_array_equal(np.asarray(image), RGB)
    assert image_size(path) == (5, 7)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGBA", "P", "PA"])
def test_other_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("a.tif" if mode == "PA" else "a.png")
    grey = np.array([[0, 255, 255, 0]], np.uint8)
    image = Image.fromarray(grey).convert("RGB").convert("P" if mode == "PA" else mode)
    image = image.convert("PA") if mode == "PA" else image
    image.save(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = load_image(path)
    assert loaded.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(loaded), np.repeat(grey[..., None], 3, 2))


def test_alpha_is_dropped_not_composited(tmp_path: Path) -> None:
    Image.new("RGBA", (1, 1), (10, 20, 30, 0)).save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png").getpixel((0, 0)) == (10, 20, 30)


@pytest.mark.parametrize("transparency", [0, bytes([0, 128])])
def test_palette_with_transparency(tmp_path: Path, transparency: int | bytes) -> None:
    image = Image.frombytes("P", (2, 1), bytes([0, 1]))
    image.putpalette([1, 2, 3, 4, 5, 6])
    image.save(tmp_path / "a.png", transparency=transparency)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.asarray(load_image(tmp_path / "a.png")).tolist() == [[[1, 2, 3], [4, 5, 6]]]


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


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_exif_orientation_is_not_applied(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (96, 64)).save(path, exif=exif)
    assert load_image(path).size == (96, 64)
    assert image_size(path) == (64, 96)


@pytest.mark.parametrize("size", [(1, 37), (37, 1), (1, 1)])
def test_thin_images_load(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size).save(tmp_path / "a.jpg")
    assert load_image(tmp_path / "a.jpg").size == size


def test_content_goes_before_the_name(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "a.jpg", "PNG")
    np.testing.assert_array_equal(np.asarray(load_image(tmp_path / "a.jpg")), RGB)


@pytest.mark.parametrize(
    ("suffix", "keep"), [("jpg", 0.5), ("png", 0.5), ("webp", 0.5), ("bmp", 0.5), ("tif", 0.5), ("jpg", 0.02)]
)
def test_truncated_files(tmp_path: Path, suffix: str, keep: float) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    refused(path, "cannot read the image|broken image|found a file that starts", size_too=False)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected JPEG, PNG, WEBP, BMP, TIFF, found an empty file"),
        (b"<html>not found", "found a file that starts with b'<html>no'"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "found a file that starts with b'%!PS-Ado'"),
    ],
)
def test_no_image_at_all(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    refused(tmp_path / "a.jpg", message)


@pytest.mark.parametrize(
    ("name", "message"), [("a.gif", "starts with b'GIF8"), ("a.webp", "found 2 frames"), ("a.png", "found 2 frames")]
)
def test_animations(tmp_path: Path, name: str, message: str) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    refused(tmp_path / name, message)


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


def test_what_is_no_file(tmp_path: Path) -> None:
    refused(tmp_path / "absent.jpg", "cannot read the image: No such file or directory")
    refused(tmp_path, "expected an image, found a folder")
    os.mkfifo(tmp_path / "pipe.jpg")
    refused(tmp_path / "pipe.jpg", "expected an image, found no regular file")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    refused(tmp_path / "loop.jpg", "cannot read the image: |expected an image")
