from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.errors import ImageError, SsrError
from pipelines.evaluation.ground_truth import read_mask
from pipelines.evaluation.plausibility import nothing_seen, plausibility

MASK = np.array([[0, 1, 20], [255, 0, 1]], np.uint8)


def four_bit_greyscale() -> bytes:
    """A 2 x 1 PNG with the greys 1 and 2 of 16; Pillow gives 17 and 34."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 2, 1, 4, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\x00\x12")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def palette_image(mask: np.ndarray) -> Image.Image:
    image = Image.fromarray(mask, mode="L")
    image.putpalette(np.arange(768, dtype=np.uint8)[::-1].tobytes())  # colours that are not the indices
    return image


@pytest.mark.parametrize("mode", ["P", "L"])
def test_reads_indices(tmp_path: Path, mode: str) -> None:
    image = palette_image(MASK) if mode == "P" else Image.fromarray(MASK)
    image.save(tmp_path / "mask.png")
    read = read_mask(tmp_path / "mask.png")
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, MASK)


def test_reads_a_palette_of_few_bits(tmp_path: Path) -> None:
    mask = np.array([[0, 1, 2, 3, 1]], np.uint8)
    palette_image(mask).save(tmp_path / "mask.png", bits=2)
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png"), mask)


@pytest.mark.parametrize(
    ("image", "found"),
    [
        (Image.new("RGB", (3, 2)), "found colours of mode RGB"),
        (Image.new("RGBA", (3, 2)), "found colours of mode RGBA"),
        (Image.new("I;16", (3, 2)), "found pixels of mode I;16"),
        (Image.new("1", (3, 2)), "found pixels of mode 1"),
    ],
)
def test_refuses_what_is_no_index(tmp_path: Path, image: Image.Image, found: str) -> None:
    image.save(tmp_path / "mask.png")
    with pytest.raises(SsrError, match="expected class indices in .*mask.png, " + found):
        read_mask(tmp_path / "mask.png")


def test_refuses_greys_that_pillow_scales_up(tmp_path: Path) -> None:
    (tmp_path / "mask.png").write_bytes(four_bit_greyscale())
    with pytest.raises(SsrError, match="mode L;4"):
        read_mask(tmp_path / "mask.png")


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(SsrError, match=r"found no file .*none\.png"):
        read_mask(tmp_path / "none.png")


@pytest.mark.parametrize("damage", ["empty", "truncated", "jpeg", "folder", "flipped"])
def test_damaged(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "mask.png"
    noise = np.random.default_rng(0).integers(0, 21, (64, 64), dtype=np.uint8)
    if damage == "folder":
        path.mkdir()
    elif damage == "jpeg":
        Image.fromarray(noise).save(path, format="JPEG")
    else:
        Image.fromarray(noise).save(path)
        data = path.read_bytes()
        flipped = data[:18] + b"\xff" + data[19:]  # in the header, caught by its checksum
        path.write_bytes({"empty": b"", "truncated": data[: len(data) // 2], "flipped": flipped}[damage])
    with pytest.raises(SsrError, match="cannot be read"):
        read_mask(path)


def test_refuses_a_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (100, 100)).save(tmp_path / "mask.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(SsrError, match="cannot be read"):
        read_mask(tmp_path / "mask.png")


def test_refuses_values_that_are_no_class(tmp_path: Path) -> None:
    palette_image(np.array([[0, 3, 5, 5, 255]], np.uint8)).save(tmp_path / "mask.png")
    assert read_mask(tmp_path / "mask.png", 5)[0, 3] == 5
    with pytest.raises(ImageError, match=r"mask\.png: expected values 0\.\.4 and 255, found 5 \(2 pixels\) \(--classes"):
        read_mask(tmp_path / "mask.png", 4)


NAMES = ("cat", "dog")
SETS: dict[str, tuple[list[tuple[list[int], tuple[int, ...] | None]], str, tuple[str, ...]]] = {
    # masks and the labels of their images -> refused?, warnings
    "sound": ([([0, 1, 255], (0,)), ([0, 2], (1,)), ([0, 255], ())], "", ()),
    "0 and 255": ([([0, 255], (0,)), ([0, 0], (1,))], "found 0 and 255 alone in 1 of 2 masks", ()),
    "0 and 255, labels unknown": ([([0, 255], None)], "found 0 and 255 alone in 1 of 1 masks", ()),
    "no class anywhere": ([([0, 255], ())], "", ()),
    "all black": ([([0], (0,))], "", ("no ground-truth mask shows a class: background alone is scored",)),
    "a class without a pixel": (
        [([0, 1], (0, 1))], "", ("in the labels but without one ground-truth pixel, so not scored: dog",)
    ),
    "some of 0 and 255": ([([0, 255], (0,)), ([1, 2], (0, 1))], "", ("1 of 2 masks hold 0 and 255 alone",)),
    "numbers off by one": ([([0, 2], (0,)), ([1, 2], (0, 1))], "", ("1 of 2 masks show classes that the image's labels do",)),
}  # fmt: skip


@pytest.mark.parametrize("name", SETS)
def test_ground_truth_that_cannot_be_meant(name: str) -> None:
    masks, refused, warnings = SETS[name]
    truth = nothing_seen(2)
    for values, labels in masks:
        truth += plausibility(np.array([values], np.uint8), 2, labels)
    if refused:
        with pytest.raises(SsrError, match=f"^here: expected class numbers in ground truth, {refused}.*write i"):
            truth.refuse_binary("here")
    else:
        truth.refuse_binary("here")
        found = truth.warnings(NAMES)
        assert [line[: len(start)] for line, start in zip(found, warnings, strict=True)] == list(warnings)
