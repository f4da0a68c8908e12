"""HDF5 stores from elsewhere: what they point at, what they claim, and what a stage makes of sound arrays of the wrong kind."""

from __future__ import annotations

import contextlib
import json
import operator
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from pipelines.errors import SsrError
from pipelines.stores.array_store import ArrayReader, ArrayWriter

TERA = 1 << 40
SIZE = {"labels": [7], "size": [64, 96]}


def add(path: Path, array: Any, attributes: dict[str, Any] | None = None, image: str = "a_cat") -> None:
    """Replace one image, past all checks of the writer."""
    with h5py.File(path, "r+") as file:
        del file[image]
        dataset = file.create_dataset(image, data=array)
        for key, value in (SIZE if attributes is None else attributes).items():
            dataset.attrs[key] = value if isinstance(value, bytes) else np.bytes_(json.dumps(value).encode())


def stored_outside(file: h5py.File, outside: Path) -> None:
    offset = h5py.File(outside)["secret"].id.get_offset()
    file.create_dataset("x", SECRET.shape, "u1", external=[(str(outside), offset, SECRET.size)])


def virtual(file: h5py.File, outside: Path) -> None:
    layout = h5py.VirtualLayout(SECRET.shape, "u1")
    layout[:] = h5py.VirtualSource(str(outside), "secret", SECRET.shape)
    file.create_virtual_dataset("x", layout)


FOREIGN: dict[str, Callable[[h5py.File, Path], object]] = {
    # one image ``x`` that is no plain array
    "link to another file": lambda file, outside: operator.setitem(file, "x", h5py.ExternalLink(str(outside), "secret")),
    "external storage": stored_outside,
    "virtual": virtual,
    "dangling link": lambda file, _: operator.setitem(file, "x", h5py.SoftLink("/nowhere")),
    "text": lambda file, _: file.create_dataset("x", data=["a", "b"], dtype=h5py.string_dtype()),
    "references": lambda file, _: file.create_dataset("x", (2,), h5py.ref_dtype),
    "lists": lambda file, _: file.create_dataset("x", (2,), h5py.vlen_dtype(np.float32)),
    "soft link": lambda file, _: operator.setitem(file, "x", h5py.SoftLink("/good")),
    "soft link to itself": lambda file, _: operator.setitem(file, "x", h5py.SoftLink("/x")),
    "group": lambda file, _: file.create_group("x/y"),
    "named type": lambda file, _: operator.setitem(file, "x", np.dtype("f4")),
    "compound": lambda file, _: file.create_dataset("x", (2,), np.dtype([("a", "f4"), ("b", "u1")])),
    "opaque": lambda file, _: file.create_dataset("x", data=np.zeros(2, "V8")),
    "no dataspace": lambda file, _: operator.setitem(file, "x", h5py.Empty("f4")),
    "2^40 elements without data": lambda file, _: file.create_dataset("x", (TERA,), "u1", chunks=(1 << 20,)),
    "2^31 columns": lambda file, _: file.create_dataset("x", (2, 1 << 31), "f4", chunks=(1, 1 << 20)),
}


SECRET = np.frombuffer(b"\x07top secret\x07", "u1")


def with_foreign(folder: Path, name: str) -> Path:
    """A store of one good image and one that is no plain array."""
    with h5py.File(folder / "outside.h5", "w") as file:
        file["secret"] = SECRET
    with h5py.File(folder / "s.h5", "w") as file:
        file["good"] = np.arange(3)
        FOREIGN[name](file, folder / "outside.h5")
    return folder / "s.h5"


@pytest.mark.parametrize("name", FOREIGN)
def test_what_is_no_plain_array_is_not_read(tmp_path, one_line, name):
    with ArrayReader(with_foreign(tmp_path, name)) as reader:
        assert reader.read("good")[0].tolist() == [0, 1, 2]
        for read in (reader.read, reader.attributes):
            said = "s.h5 is damaged" if name == "no dataspace" else "s.h5 is not a plain array and was not read"
            assert said in one_line(read, "x")


@pytest.mark.parametrize("name", list(FOREIGN)[:6])
def test_what_is_no_plain_array_does_not_become_one_by_a_merge(tmp_path, one_line, name):
    path = with_foreign(tmp_path, name)
    with contextlib.suppress(SsrError), ArrayWriter(path) as writer:  # refusing the whole store is as good
        writer.add("another", np.zeros(3))
    assert SECRET.tobytes() not in path.read_bytes()
    with ArrayReader(path) as reader:
        if "x" in reader:
            one_line(reader.read, "x")


ATTRIBUTES = {
    "deep": b"[" * 60_000,  # more does not fit into an attribute
    "no json": b"{",
    "no utf-8": b'"\xff"',
    "number of 5,000 digits": b"9" * 5_000,
}


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_attributes_that_are_no_json(tmp_path, one_line, name):
    with h5py.File(tmp_path / "s.h5", "w") as file:
        file["x"] = np.zeros(3)
        file["x"].attrs["labels"] = np.bytes_(ATTRIBUTES[name])
    with ArrayReader(tmp_path / "s.h5") as reader:
        assert "x in " in one_line(reader.read, "x")


WRONG: dict[str, tuple[str, str, Callable[[], Any], dict[str, Any] | None]] = {
    # name: store, command that reads it, array, attributes
    "two maps for one label": ("cams", "refine", lambda: np.zeros((2, 4, 6), np.float16), None),
    "no map for one label": ("cams", "refine", lambda: np.zeros((0, 4, 6), np.float16), None),
    "map without axes": ("cams", "refine", lambda: np.float16(1), None),
    "map of one axis": ("cams", "refine", lambda: np.zeros(24, np.float16), None),
    "map of another grid": ("cams", "refine", lambda: np.zeros((1, 9, 9), np.float16), None),
    "map of NaN": ("cams", "refine", lambda: np.full((1, 4, 6), np.nan, np.float16), None),
    "map of infinity": ("cams", "refine", lambda: np.full((1, 4, 6), np.inf, np.float16), None),
    "map far beyond 1": ("cams", "refine", lambda: np.full((1, 4, 6), 6e4, np.float16), None),
    "map without attributes": ("cams", "refine", lambda: np.zeros((1, 4, 6), np.float16), {}),
    "map of text as size": ("cams", "eval cams", lambda: np.zeros((1, 4, 6), np.float16), {"labels": [7], "size": "x"}),
    "map of NaN, scored": ("cams", "eval cams", lambda: np.full((1, 4, 6), np.nan, np.float16), None),
    "two maps for one label, scored": ("cams", "eval cams", lambda: np.zeros((2, 4, 6), np.float16), None),
    "refined of NaN": ("refined", "eval refined", lambda: np.full((1, 4, 6), np.nan, np.float16), None),
    "refined of two maps": ("refined", "eval refined", lambda: np.zeros((2, 4, 6), np.float16), None),
    "superpixels below zero": ("superpixels", "cams", lambda: np.full((64, 96), -1, np.int32), None),
    "superpixels beyond all": ("superpixels", "cams", lambda: np.full((64, 96), 2**31 - 1, np.int64), None),
    "superpixels as fractions": ("superpixels", "cams", lambda: np.full((64, 96), 0.5), None),
    "superpixels of another size": ("superpixels", "cams", lambda: np.zeros((8, 8), np.uint16), None),
    "superpixels of three axes": ("superpixels", "cams", lambda: np.zeros((64, 96, 1), np.uint16), None),
}


def said(ssr, finished, tmp_path, name: str) -> Any:
    store, command, array, attributes = WRONG[name]
    work = Path(shutil.copytree(finished["ssr"], tmp_path / "work"))
    add(work / f"{store}.h5", array(), attributes)
    if command in {"refine", "cams"}:
        for output in {"refine": ("refined.h5", "refined.json", "masks.json"), "cams": ("cams.h5", "cams.json")}[command]:
            (work / output).unlink()
    return ssr(*command.split(), "--work", work, "--max-failures", -1, code=None)


@pytest.mark.parametrize("name", WRONG)
def test_sound_arrays_of_the_wrong_kind(ssr, finished, tmp_path, name):
    ran = said(ssr, finished, tmp_path, name)
    assert "unexpected" not in ran.text, ran.err[-300:]
    assert ran.code in {1, 2, 3}, f"taken without a word: {ran.text[-300:]}"
    assert "a_cat" in ran.err


CHILD = """
import resource, sys
from pathlib import Path
from pipelines.errors import SsrError
from pipelines.stores import array_file
from pipelines.stores.array_store import ArrayReader
array_file._survives = lambda path: True  # this process is the one that may crash
resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))

def held(path):
    found = {}
    with ArrayReader(path) as reader:
        for image in reader.ids():
            try:
                array, attributes = reader.read(image)
                found[image] = (array.dtype.str, array.shape, array.tobytes(), attributes)
            except SsrError:
                found[image] = None
    return found

good, path = Path(sys.argv[1]).read_bytes(), Path(sys.argv[2])
path.write_bytes(good)
before = held(path)
for place in range(0, len(good), int(sys.argv[3])):
    path.write_bytes(good[:place] + bytes([good[place] ^ 0xFF]) + good[place + 1:])
    try:
        after = held(path)
    except SsrError:
        continue
    except Exception as error:
        print(place, "raised", type(error).__name__)
        continue
    if after.keys() != before.keys():
        print(place, "other ids")
    elif any(value is not None and value != before[image] for image, value in after.items()):
        print(place, "other content")
print("end")
"""


@pytest.fixture(scope="module")
def flips(tmp_path_factory) -> list[str]:
    """What came of flipping every 41st byte of a small store, one after the other; every byte with ``SSR_FAULTS=full``."""
    folder = tmp_path_factory.mktemp("flips")
    with ArrayWriter(folder / "good.h5") as writer:
        for number in range(6):
            writer.add(f"img_{number:04d}", np.random.default_rng(number).random((2, 4, 6)).astype(np.float16), SIZE)
    step = 1 if os.environ.get("SSR_FAULTS") == "full" else 41
    words = [sys.executable, "-c", CHILD, folder / "good.h5", folder / "bad.h5", step]
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, timeout=900, check=False)
    return [*done.stdout.splitlines(), f"exit {done.returncode}"]  # below zero: libhdf5 crashed


def test_flipped_bytes_never_crash_or_hang_the_reader(flips):
    assert flips[-2:] == ["end", "exit 0"]


def test_flipped_bytes_are_found_in_metadata_too(flips):
    assert flips == ["end", "exit 0"]
