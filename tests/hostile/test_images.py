"""A zoo of photos through whole stages: right pixels or one line, and the photos beside them as if it were not there."""

from __future__ import annotations

import io
import json
import os
import re
import struct
import zlib
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipelines.errors import ImageError

Pixels = NDArray[np.uint8]
RNG = np.random.default_rng(7)
NOISE: Pixels = np.kron(RNG.integers(0, 256, (8, 10, 3)), np.ones((5, 5, 1))).astype(np.uint8)  # (40, 50, 3)
GREY: Pixels = NOISE[..., 0]
BOUNDARIES = ("none", *("crf",) * bool(find_spec("pydensecrf")), "par")


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decoded(data: bytes) -> Pixels:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def rgb(grey: Pixels) -> Pixels:
    return np.repeat(grey[..., None], 3, 2)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_with(*chunks: bytes) -> bytes:
    data = encoded(photo())
    return data[:33] + b"".join(chunks) + data[33:]  # behind the header


def png_of(width: int, height: int) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def sixteen_bit_png() -> bytes:
    """RGB of 16 bits, which Pillow cannot write."""
    rows = (NOISE.astype(">u2") * 257).tobytes()
    step = NOISE.shape[1] * 6
    scan = b"".join(b"\0" + rows[start : start + step] for start in range(0, len(rows), step))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 50, 40, 16, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(scan)) + chunk(b"IEND", b"")


def photo(mode: str = "RGB") -> Image.Image:
    return Image.fromarray(NOISE).convert(mode)


def rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(photo(), "JPEG", exif=exif)


def frames() -> dict[str, Any]:
    return {"save_all": True, "append_images": [photo().transpose(Image.Transpose.ROTATE_180)]}


def flipped(data: bytes, tag: bytes, offset: int) -> bytes:
    place = data.index(tag) + offset
    return data[:place] + bytes([data[place] ^ 0x40]) + data[place + 1 :]


JPEG = encoded(photo(), "JPEG", quality=95)
PNG = encoded(photo())
TRANSPARENT = Image.merge("RGBA", (*photo().split(), Image.fromarray(GREY)))
CMYK = encoded(photo("CMYK"), "JPEG", quality=95)
GARBAGE = b"Exif\0\0" + bytes(range(256)) * 200
PALETTE = photo().quantize(16)

GOOD: dict[str, tuple[bytes, Pixels]] = {
    # name: bytes, pixels as stored
    "16 bits grey": (encoded(Image.fromarray(GREY.astype(np.uint16) * 257)), rgb(GREY)),
    "16 bits rgb": (sixteen_bit_png(), NOISE),
    "cmyk": (CMYK, decoded(CMYK)),
    "exif-rotated": (rotated(), decoded(rotated())),
    "palette": (encoded(PALETTE), np.asarray(PALETTE.convert("RGB"))),
    "palette with transparency": (encoded(PALETTE, transparency=bytes(range(16))), np.asarray(PALETTE.convert("RGB"))),
    "rgba": (encoded(TRANSPARENT), NOISE),
    "la": (encoded(Image.merge("LA", (Image.fromarray(GREY), Image.fromarray(GREY)))), rgb(GREY)),
    "grey": (encoded(Image.fromarray(GREY)), rgb(GREY)),
    "palette with alpha": (encoded(PALETTE.convert("PA"), "TIFF"), np.asarray(PALETTE.convert("RGB"))),
    "one bit": (encoded(photo("1")), rgb(np.asarray(photo("1")).astype(np.uint8) * 255)),
    "progressive": (encoded(photo(), "JPEG", progressive=True), decoded(encoded(photo(), "JPEG", progressive=True))),
    "camera preview (MPO)": (encoded(photo(), "MPO", **frames()), decoded(encoded(photo(), "MPO", **frames()))),
    "png named jpg": (PNG, NOISE),
    "webp named jpg": (encoded(photo(), "WEBP", lossless=True), NOISE),
    "bmp named jpg": (encoded(photo(), "BMP"), NOISE),
    "tiff named jpg": (encoded(photo(), "TIFF", compression="tiff_lzw"), NOISE),
    "webp with alpha": (encoded(TRANSPARENT, "WEBP", lossless=True, exact=True), NOISE),
    "1xN": (encoded(Image.fromarray(NOISE[:, :1])), NOISE[:, :1]),
    "Nx1": (encoded(Image.fromarray(NOISE[:1])), NOISE[:1]),
    "1x1": (encoded(Image.fromarray(NOISE[:1, :1])), NOISE[:1, :1]),
    "garbage behind the end": (JPEG + bytes(5000), decoded(JPEG)),
    "garbage as exif": (
        encoded(photo(), "JPEG", exif=b"Exif\0\0" + bytes(range(256)) * 200),
        decoded(encoded(photo(), "JPEG")),
    ),
    "été 図 🐈": (PNG, NOISE),
    "-rf $(x) 'q\" %n [bold]": (PNG, NOISE),
    "a.b.jpg": (PNG, NOISE),
    "x" * 200: (PNG, NOISE),
}

HUGE = zlib.compress(bytes(100_000_000), 9)
BAD: dict[str, tuple[bytes | Callable[[Path], object], str]] = {
    # name: bytes or what makes the file, what the line says
    "zero byte": (b"", "an empty file"),
    "truncated jpeg": (JPEG[: len(JPEG) // 2], "truncated"),
    "truncated png": (PNG[:-30], "cannot read the image|broken image|truncated"),
    "png cut behind the pixels": (PNG[:-12], "cannot read the image|broken image|truncated"),
    "header of a jpeg": (JPEG[:20], "cannot read the image|starts with"),
    "html": (b"<!DOCTYPE html><html>404 not found</html>", "starts with b'<!DOCTYP'"),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>', "starts with b'<svg xml'"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) run\n", "starts with b'%!PS-Ado'"),
    "gif": (encoded(PALETTE, "GIF"), "starts with b'GIF8"),
    "jpeg 2000": (encoded(photo(), "JPEG2000"), "expected JPEG, PNG, WEBP, BMP, TIFF"),
    "animated gif": (encoded(PALETTE, "GIF", **frames()), "starts with b'GIF8"),
    "animated webp": (encoded(photo(), "WEBP", **frames()), "found 2 frames"),
    "animated png": (encoded(photo(), "PNG", **frames()), "found 2 frames"),
    "tiff of two pages": (encoded(photo(), "TIFF", **frames()), "found 2 frames"),
    "tiff of floats": (encoded(Image.fromarray(GREY.astype(np.float32)), "TIFF"), "found 32"),
    "bomb": (encoded(Image.new("1", (12_000, 12_000))), "expected at most 100000000 pixels"),
    "bomb of 4e18 pixels": (png_of(2**31 - 1, 2**31 - 1), "refused before decoding"),
    "png checksum of the header": (flipped(PNG, b"IHDR", 14), "broken PNG|expected JPEG|cannot read|starts with"),
    "png checksum of the pixels": (flipped(PNG, b"IDAT", 40), "bad header checksum|broken"),
    "png without pixels": (png_of(50, 40), "cannot read|truncated|broken"),
    "png with 100 MB of profile": (png_with(chunk(b"iCCP", b"x\0\0" + HUGE)), "too large|broken image|cannot read"),
    "png with 100 MB of text": (png_with(chunk(b"zTXt", b"x\0\0" + HUGE)), "too large|broken image|cannot read"),
    "folder": (lambda path: path.mkdir(), "found a folder"),
    "pipe": (os.mkfifo, "no regular file"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "no regular file"),
    "loop of links": (lambda path: path.symlink_to(path), "cannot read the image|Symlink loop|symbolic"),
    "broken link": (lambda path: path.symlink_to(path.with_name("nowhere.jpg")), "No such file"),
    "missing": (lambda path: None, "No such file"),
}
REFUSED_BY_HEADER = (
    "zero byte", "html", "svg", "postscript", "gif", "animated gif", "animated webp", "animated png", "tiff of two pages",
    "bomb", "folder", "pipe", "device", "loop of links", "broken link", "missing",
)  # fmt: skip
CLEAN = ("first", "between", "last")
NAMES = (CLEAN[0], *BAD, CLEAN[1], *GOOD, CLEAN[2])


def write_voc(root: Path, names: tuple[str, ...]) -> Path:
    """A VOC folder of these photos, all with a cat and every second with a dog too."""
    for folder in ("JPEGImages", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for name in names:
        path = root / "JPEGImages" / f"{name}.jpg"
        content = PNG if name in CLEAN else GOOD[name][0] if name in GOOD else BAD[name][0]
        content(path) if callable(content) else path.write_bytes(content)
    (root / "ImageSets/Segmentation/train.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    labels = {f"{name}.jpg": ["cat", "dog"][: 1 + len(name) % 2] for name in names}
    (root / "labels.json").write_text(json.dumps(labels), encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def runs(tiny_voc, ssr, tmp_path_factory) -> dict[str, tuple[Path, dict[str, Any]]]:
    """Work directories of a run with the bad photos and of one without, and what each stage said."""
    found = {}
    for which, names in (("with", NAMES), ("without", tuple(name for name in NAMES if name not in BAD))):
        folder = tmp_path_factory.mktemp(which)
        root, work = write_voc(folder / "voc", names), folder / "work"
        made = ("--config", tiny_voc.config, "--root", root, "--labels", root / "labels.json", "--work", work)
        code = 3 if which == "with" else 0
        said = {}
        for stage in ("superpixels", "cams"):  # CLIP-ES's CAMs need no superpixels: they open every photo themselves
            said[stage] = ssr(stage, *made, "--recipe", "clip-es", "--max-failures", -1, code=code)
        if which == "with":
            for name in BOUNDARIES:
                flags = ("--recipe", "clip-es", "--max-failures", -1, "--boundary", name, "--force")
                said[name] = ssr("refine", *made, *flags, code=code)
        found[which] = (work, said)
    return found


def records(work: Path, stage: str) -> dict[str, tuple[Any, dict[str, Any]]]:
    from pipelines.stores.array_store import iter_records

    return dict(iter_records(work / f"{stage}.h5"))


def failures(work: Path, stage: str) -> dict[str, str]:
    lines = [json.loads(line) for line in (work / "failures.jsonl").read_text(encoding="utf-8").splitlines()]
    own = [line for line in lines if line["stage"] == stage]
    assert len({line["image"] for line in own}) == len(own)
    return {line["image"]: line["error"] for line in own}


def test_there_are_kinds_enough():
    assert len(BAD) >= 20
    assert len(GOOD) + len(BAD) >= 50


@pytest.mark.parametrize("stage", ["superpixels", "cams"])
@pytest.mark.parametrize("name", BAD)
def test_a_bad_photo_is_one_line(runs, name, stage):
    work, said = runs["with"]
    error = failures(work, stage)[name]
    assert "\n" not in error
    assert len(error) < 400
    assert re.search(BAD[name][1], error), error
    assert f"{name}: " in said[stage].err


@pytest.mark.parametrize("stage", ["superpixels", "cams"])
def test_bad_photos_alone_fail_and_nothing_stands_in_for_them(runs, stage):
    work, said = runs["with"]
    assert failures(work, stage).keys() == BAD.keys()
    assert records(work, stage).keys() == {*GOOD, *CLEAN}
    assert "Traceback" not in said[stage].text
    assert "unexpected" not in said[stage].text
    assert json.loads((work / f"{stage}.json").read_text())["counts"] == {
        "done": len(GOOD) + len(CLEAN), "failed": len(BAD), "skipped": 0,
    }  # fmt: skip


def test_masks_are_made_of_the_other_photos_alone(runs):
    work, said = runs["with"]
    assert failures(work, "refine").keys() == BAD.keys()
    assert {path.stem for path in (work / "masks").glob("*.png")} == {*GOOD, *CLEAN}
    for path in (work / "masks").glob("*.png"):
        with Image.open(path) as mask, Image.open(work.parent / f"voc/JPEGImages/{path.stem}.jpg") as image:
            assert mask.size == image.size
    assert all(f"{len(BAD)} bad images left out" in ran.err for ran in said.values())


@pytest.mark.parametrize("stage", ["superpixels", "cams"])
def test_the_photos_beside_them_are_the_same_to_the_byte(runs, stage):
    with_bad, without = (records(runs[which][0], stage) for which in ("with", "without"))
    assert with_bad.keys() == without.keys()
    for name, (array, attributes) in without.items():
        assert with_bad[name][0].tobytes() == array.tobytes(), name
        assert with_bad[name][1] == attributes, name


@pytest.mark.parametrize("name", GOOD | dict.fromkeys(REFUSED_BY_HEADER))
def test_the_header_alone_gives_the_size_or_the_same_line(runs, name):
    from pipelines.datasets.image import image_size

    path = runs["with"][0].parent / "voc/JPEGImages" / f"{name}.jpg"
    if name in GOOD:
        assert image_size(path) == GOOD[name][1].shape[:2]
    else:
        with pytest.raises(ImageError, match=BAD[name][1]):
            image_size(path)


@pytest.mark.parametrize("name", GOOD)
def test_an_odd_photo_has_its_own_pixels(runs, name):
    from pipelines.datasets.image import load_image
    from pipelines.ops.slic import slic_superpixels

    work = runs["with"][0]
    path = work.parent / "voc/JPEGImages" / f"{name}.jpg"
    np.testing.assert_array_equal(np.asarray(load_image(path)), GOOD[name][1])
    expected = slic_superpixels(GOOD[name][1], 12, 10.0, 5)
    stored, attributes = records(work, "superpixels")[name]
    assert attributes["size"] == list(GOOD[name][1].shape[:2])
    np.testing.assert_array_equal(stored, expected)
