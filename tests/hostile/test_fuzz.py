"""Mutations of valid files: every reader returns, or raises an error of ours of one line.

A few seconds by default, always the same examples; thousands of others for each reader with ``SSR_FAULTS=full``.
"""

from __future__ import annotations

import io
import json
import os
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from pipelines.config import build_options, read_config
from pipelines.corrections import Source, corrections
from pipelines.datasets.classes import COCO14, VOC12, load_class_list
from pipelines.datasets.coco_json import read_instances
from pipelines.datasets.image import load_image
from pipelines.datasets.label_files import read_label_file
from pipelines.datasets.mask_labels import labels_from_masks
from pipelines.datasets.names import check_image_id
from pipelines.datasets.onehot import read_onehot_npy
from pipelines.datasets.splits import read_split
from pipelines.datasets.voc import labels_from_xml
from pipelines.encoders.text import TextBank, read_bank, write_bank
from pipelines.errors import SsrError
from pipelines.evaluation.ground_truth import read_mask
from pipelines.evaluation.metrics import metrics_from_counts
from pipelines.evaluation.report import Report, read_report, write_report
from pipelines.ops.run_lengths import encode_brush
from pipelines.stores.array_store import ArrayReader, ArrayWriter
from pipelines.stores.checkpoint import read_checkpoint, write_checkpoint
from pipelines.stores.manifest import Manifest
from pipelines.workdir.memory import recall

FULL = os.environ.get("SSR_FAULTS") == "full"
EXAMPLES = 2_000 if FULL else 40
SECONDS = 10  # no file of a few kilobytes may take longer

WORDS = [
    b"\0", b"\xff", b"\xef\xbb\xbf", b"\r", b"\n", b'"', b"'", b"[", b"{", b"]]", b"[[", b"<", b"&", b"9" * 400, b"9" * 5000,
    b"1e999", b"null", b"NaN", b"-1", b"true", b"&a ", b"*a", b"<<: ", b"!!timestamp x", b"!!int x",
    b"!!python/object:os.system", b": ", "\u202e".encode(), "図".encode(), b"..", b"/", b"\\", b"2020-99-99", b"2020-01-01",
    b"~nobody/", b"<!ENTITY a 'b'>", b"[" * 3000,
]  # fmt: skip


def picture(kind: str, mode: str = "RGB", **options: Any) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 20, (16, 12, 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def one_hot() -> bytes:
    row, buffer = np.zeros(20, np.float32), io.BytesIO()
    row[3] = 1
    np.save(
        buffer, np.array({"a": row, "b": row.astype(">i8"), np.str_("c"): row.astype(bool)}, dtype=object), allow_pickle=True
    )
    return buffer.getvalue()


def made(write: Callable[[Path], object]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "f.bin")
        return (Path(folder) / "f.bin").read_bytes()


def store(path: Path) -> None:
    with ArrayWriter(path.with_suffix(".h5")) as writer:
        for name in ("a", "b"):
            writer.add(name, np.arange(24, dtype=np.float16).reshape(2, 3, 4), {"labels": [1, 7], "size": [64, 96]})
    path.with_suffix(".h5").rename(path)


def read_store(path: Path) -> None:
    with ArrayReader(path) as reader:
        for image in reader.ids():
            try:
                array, _ = reader.read(image)
            except SsrError:
                continue
            assert array.dtype.kind in "biuf"


def report(path: Path) -> None:
    metrics = metrics_from_counts(np.array([[3, 1, 0], [1, 4, 1]]), ["background", "cat"])
    write_report(Report(**metrics.summary, what="masks", split="train", images=2, options_digest="0"), path)


def options_of(path: Path) -> None:
    values, _ = read_config(path)
    for section, entries in values.items():
        build_options(section, entries)


def labels(read: Callable[[Path], dict[str, Any]]) -> Callable[[Path], None]:
    """Whatever is read has safe ids and known classes."""

    def checked(path: Path) -> None:
        for image_id, value in read(path).items():
            assert check_image_id(image_id, "") == image_id
            present = value if isinstance(value, tuple) else value.labels
            assert list(present) == sorted(set(present))
            assert all(0 <= index < 80 for index in present)

    return checked


def rgb(path: Path) -> None:
    image = load_image(path)
    assert image.mode == "RGB"
    assert 0 < image.width * image.height == np.asarray(image).size // 3


def corrected(path: Path) -> None:
    """Whatever is read is a label map of known classes; an image that cannot be used counts as refused."""
    refused = None
    for image_id, found in corrections(Source(path, VOC12)):
        assert check_image_id(image_id, "") == image_id
        if isinstance(found, SsrError):
            refused = found
        else:
            assert set(np.unique(found.label_map).tolist()) <= {*range(21), 255}
    if refused is not None:
        raise refused


def mask_zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("labelmap.txt", "background:0,0,0::\ncat:9,9,9::\ndog:5,0,0::\n")
        for name, mode in (("a b", "L"), ("c", "P")):
            out = io.BytesIO()
            Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4) % 3).convert(mode).save(out, "PNG")
            archive.writestr(f"SegmentationClass/{name}.png", out.getvalue())
    return buffer.getvalue()


CVAT_XML = b"""<?xml version="1.0" encoding="utf-8"?><annotations><version>1.1</version>
<image id="0" name="a.jpg" width="6" height="4">
<mask label="cat" rle="1, 2, 1" left="1" top="1" width="2" height="2" z_order="1"></mask>
<polygon label="dog" points="0.5,0.5;3,1;2,4" z_order="0"></polygon></image></annotations>"""
CORRECTED = {
    "images": [{"id": 1, "file_name": "a.jpg", "width": 4, "height": 3}],
    "annotations": [
        {"image_id": 1, "category_id": 3, "segmentation": [[0, 0, 3, 0, 3, 2]]},
        {"image_id": 1, "category_id": 1, "segmentation": {"size": [3, 4], "counts": [5, 2, 5]}},
        {"image_id": 1, "category_id": 1, "segmentation": {"size": [3, 4], "counts": "525"}},
    ],
    "categories": [{"id": 3, "name": "dog"}, {"id": 1, "name": "person"}],
}
BRUSH = {"format": "rle", "rle": encode_brush(np.eye(3, 4, dtype=bool)), "brushlabels": ["cat"]}
TASKS = [{"data": {"image": "/x/a.jpg"}, "annotations": [{"result": [
    {"type": "brushlabels", "original_width": 4, "original_height": 3, "value": BRUSH}]}]}]  # fmt: skip
INSTANCES = {
    "images": [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}],
    "annotations": [{"image_id": 1, "category_id": 3, "segmentation": [[1, 2]]}],
    "categories": [{"id": 3, "name": "dog"}, {"id": 1, "name": "person"}],
}
MANIFEST = {"stage": "cams", "settings": {"a": 1}, "dataset": {"images": 3}, "counts": {"done": 1}, "complete": True}
MEMORY = {"dataset": {"kind": "voc", "root": "/x"}, "clip": {}, "dino": {}, "recipe": "ssr", "config": {"cams": {"flip": True}}}
BANK = TextBank(torch.eye(2, 4), ("a", "b"), "m", "p", "{}")
JSONL = b'{"image": "a", "labels": ["cat"]}\n{"image": "b", "labels": []}\n'
TOML = 'template = "a {}."\n[[classes]]\nname = "mug"\naliases = ["cup"]\n'
CONFIG = 'work = "r"\nrecipe = "ssr"\n[dataset]\nkind = "voc"\nroot = "~/x"\n[cams]\nscales = [1.0, 2]\n'
CLASSES = 'template: "a {}."\nbackground: [x, y]\nclasses:\n  - name: mug\n    prompt: m\n    aliases: [cup]\n  - {name: b}\n'

READERS: dict[str, tuple[str, Callable[[Path], object], list[bytes]]] = {
    # name: (file name, reader, valid files)
    "labels csv": ("l.csv", labels(lambda p: read_label_file(p, VOC12)), [b"image,labels\na.jpg,cat;dog\nb,person\nc,\n"]),
    "labels json": ("l.json", labels(lambda p: read_label_file(p, VOC12)), [b'{"a.jpg": ["cat", "dog"], "b": []}']),
    "labels jsonl": ("l.jsonl", labels(lambda p: read_label_file(p, VOC12)), [JSONL]),
    "split": ("s.txt", read_split, [b"a\nb\n# c\nd e\n"]),
    "classes toml": ("c.toml", load_class_list, [TOML.encode()]),
    "classes yaml": ("c.yaml", load_class_list, [CLASSES.encode()]),
    "config": ("k.toml", options_of, [CONFIG.encode()]),
    "xml": ("a.xml", labels(lambda p: labels_from_xml(p.parent, VOC12)), [
        b'<?xml version="1.0" encoding="utf-8"?><annotation><object><name>dog</name></object></annotation>']),
    "coco": ("i.json", labels(lambda p: read_instances(p, COCO14).images), [json.dumps(INSTANCES).encode()]),
    "one-hot": ("n.npy", labels(lambda p: read_onehot_npy(p, VOC12)), [one_hot()]),
    "mask": ("m.png", read_mask, [picture("PNG", "L"), picture("PNG", "P")]),
    "mask labels": ("m.png", labels(lambda p: labels_from_masks(p.parent, VOC12)), [picture("PNG", "L")]),
    "png": ("a.png", rgb, [picture("PNG"), picture("PNG", "P", transparency=3), picture("PNG", "LA"), picture("PNG", "I;16")]),
    "jpeg": ("a.jpg", rgb, [picture("JPEG"), picture("JPEG", progressive=True), picture("JPEG", "CMYK"), picture("JPEG", "L")]),
    "webp": ("a.webp", rgb, [picture("WEBP"), picture("WEBP", lossless=True), picture("WEBP", "RGBA")]),
    "bmp": ("a.bmp", rgb, [picture("BMP"), picture("BMP", "P"), picture("BMP", "1")]),
    "tiff": ("a.tif", rgb, [picture("TIFF", compression=how) for how in ("raw", "tiff_lzw", "jpeg", "tiff_deflate")]),
    "corrected zip": ("c.zip", corrected, [mask_zip()]),
    "corrected xml": ("c.xml", corrected, [CVAT_XML]),
    "corrected coco": ("c.json", corrected, [json.dumps(CORRECTED).encode()]),
    "corrected tasks": ("c.json", corrected, [json.dumps(TASKS).encode()]),
    "bank": ("b.safetensors", read_bank, [made(lambda path: write_bank(path, BANK))]),
    "checkpoint": ("c.safetensors", lambda p: read_checkpoint(p, "--ckpt"), [
        made(lambda path: write_checkpoint(path, {"w": BANK.embeddings}, {"iteration": 3}))]),
    "store": ("s.h5", read_store, [made(store)]),
    "manifest": ("m.json", Manifest.read, [json.dumps(MANIFEST).encode()]),
    "report": ("r.json", read_report, [made(report)]),
    "memory": ("work.json", lambda p: recall(p.parent), [json.dumps(MEMORY).encode()]),
}  # fmt: skip
CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["byte", "bit", "word", "cut", "end", "splice", "double"]), st.floats(0, 1), st.integers(0, 1 << 16)
    ),
    min_size=1,
    max_size=6,
)


def mutated(data: bytes, changes: list[tuple[str, float, int]]) -> bytes:
    for kind, where, number in changes:
        place = int(where * max(0, len(data) - 1))
        head, tail = data[:place], data[place:]
        match kind:
            case "byte":
                data = head + bytes([number % 256]) + tail[1:]
            case "bit":
                data = head + bytes(byte ^ (1 << number % 8) for byte in tail[:1]) + tail[1:]
            case "word":
                data = head + WORDS[number % len(WORDS)] + tail
            case "cut":
                data = head + tail[1 + number % 16 :]
            case "end":
                data = head
            case "splice":
                start = number % (len(data) + 1)
                data = head + data[start : start + 40] + tail
            case _:
                data = head + tail[:40] + tail
    return data


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", READERS)
def test_readers_return_or_refuse(tmp_path, name):
    file, read, seeds = READERS[name]
    path = tmp_path / file
    outcomes = {"read": 0, "refused": 0}
    for seed in seeds:
        path.write_bytes(seed)
        read(path)

    @settings(
        max_examples=EXAMPLES, derandomize=not FULL, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(st.sampled_from(seeds), CHANGES)
    def run(seed: bytes, changes: list[tuple[str, float, int]]) -> None:
        path.write_bytes(mutated(seed, changes))
        started = time.monotonic()
        try:
            read(path)
            outcomes["read"] += 1
        except SsrError as error:
            outcomes["refused"] += 1
            said = str(error)
            assert "\n" not in said
            assert len(said) < 1_000
        assert time.monotonic() - started < SECONDS

    run()
    assert outcomes["refused"] > EXAMPLES // 20, outcomes  # mutations do reach the reader
