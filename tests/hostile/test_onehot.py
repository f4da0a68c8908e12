"""One-hot files that turn what is admitted against the reader: types that point, sizes that fill, keys that take for ever."""

from __future__ import annotations

import pickle
import resource
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

RECONSTRUCT = np._core.multiarray._reconstruct
FLAGLESS = (3, "|", None, None, None, -1, -1, 0)  # an object type that says it holds no objects


class Built:
    """Pickles as a call, and a state given to its result."""

    def __init__(self, call: Any, arguments: tuple[Any, ...], state: Any = None) -> None:
        self.parts = (call, arguments) if state is None else (call, arguments, state)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.parts


def array(shape: Any, dtype: Any, content: Any) -> Built:
    return Built(RECONSTRUCT, (np.ndarray, (0,), b"b"), (1, shape, dtype, False, content))


def dtype(name: str, *state: Any) -> Built:
    return Built(np.dtype, (name, False, True), state or (3, "<", None, None, None, -1, -1, 0))


def in_dict(row: Any, key: Any = "a") -> Built:
    return array((), dtype("O8", *FLAGLESS[:-1], 63), [{key: row}])


def text(name: str) -> bytes:
    return b"\x8c" + bytes([len(name)]) + name.encode()


def nested_tuples() -> bytes:
    """A dict with a key of 2^60 leaves, each level twice the one below."""
    return b"\x80\x04})" + b"2\x86" * 60 + b"K\x01s."


STATES = {
    "object array of bytes": array((), dtype("O8", *FLAGLESS), b"A" * 8),
    "row of objects of bytes": in_dict(array((20,), dtype("O8", *FLAGLESS), b"A" * 160)),
    "structured type over bytes": in_dict(
        array((1,), dtype("V8", 3, "|", None, ("a",), {"a": (np.dtype("O"), 0)}, 8, 1, 0), b"A" * 8)
    ),
    "scalar of such a type as key": in_dict(1, Built(np._core.multiarray.scalar, (dtype("O8", *FLAGLESS), b"A" * 8))),
    "type with a time": in_dict(array((20,), dtype("M8[s]"), bytes(160))),
    "type of many fields": in_dict(array((20,), Built(np.dtype, ("(1000000,)f8", False, True)), b"")),
    "type from a dict": in_dict(array((20,), Built(np.dtype, ({"names": ["a"], "formats": ["O"]}, False, True)), b"")),
    "shape of 2^62": in_dict(array((1 << 62,), dtype("f4"), bytes(80))),
    "shape below zero": in_dict(array((-20,), dtype("f4"), bytes(80))),
    "shape of text": in_dict(array("xx", dtype("f4"), bytes(80))),
    "content too short": in_dict(array((20,), dtype("f4"), bytes(79))),
    "content of text": in_dict(array((20,), dtype("f4"), "x" * 80)),
    "no state": in_dict(Built(RECONSTRUCT, (np.ndarray, (0,), b"b"))),
    "2^40 elements asked of the constructor": in_dict(Built(np.ndarray, ((1 << 40,),))),
    "key of bytes": in_dict(1, b"a"),
    "key of a tuple": in_dict(1, ("a",)),
    "a set": in_dict({1, 2}),
}
RAW = {
    "memo index of 2^31": b"\x80\x04Nr" + struct.pack("<I", 2**31 - 1) + b".",
    "memo index of 2^31, got": b"\x80\x04j" + struct.pack("<I", 2**31 - 1) + b".",
    "bytes of 2^40": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b"x.",
    "text of 2^62": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 62) + b"x.",
    "frame of 2^62": b"\x80\x04\x95" + struct.pack("<Q", 1 << 62) + b"N.",
    "number of a megabyte": b"\x80\x04\x8b" + struct.pack("<I", 1_000_000) + b"\x7f" * 1_000_000 + b".",
    "digits without end": b"I" + b"9" * 100_000 + b"\n.",
    "a key of 2^60 leaves": nested_tuples(),
    "100,000 lists in one another": b"\x80\x04" + b"]" * 100_000 + b"a" * 99_999 + b".",
    "what hangs something on a function": (
        b"\x80\x04" + text("numpy._core.multiarray") + text("_reconstruct") + b"\x93}" + text("x") + b"K\x01sb."
    ),
    "what hangs something on a class": b"\x80\x04" + text("numpy") + text("ndarray") + b"\x93}" + text("x") + b"K\x01sb.",
    "extension code": b"\x80\x04\x82\x01.",
}


def write(path: Path, pickled: bytes) -> Path:
    np.save(path, np.array({}, dtype=object), allow_pickle=True)
    header = path.read_bytes()
    path.write_bytes(header[: header.index(b"\n") + 1] + pickled)
    return path


def limited() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))


READ = """
import sys
from pathlib import Path
from pipelines.datasets.classes import VOC12
from pipelines.datasets.onehot import read_onehot_npy
from pipelines.errors import SsrError
for path in sys.argv[1:]:
    try:
        read_onehot_npy(Path(path), VOC12)
        print("taken", path)
    except SsrError as error:
        print("one line" if "\\n" not in str(error) else "lines", path)
"""


def test_none_of_them_crashes_fills_the_memory_or_hangs(tmp_path):
    """All of them in one process of 4 GB that must reach its end."""
    cases = {**{name: pickle.dumps(content, 4) for name, content in STATES.items()}, **RAW}
    paths = [write(tmp_path / f"{number}.npy", pickled) for number, pickled in enumerate(cases.values())]
    command = [sys.executable, "-c", READ, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False, preexec_fn=limited)
    assert done.returncode == 0, (done.returncode, done.stdout[-200:], done.stderr[-300:])
    said = [line.rsplit(" ", 1)[0] for line in done.stdout.splitlines()]
    assert dict(zip(cases, said, strict=True)) == dict.fromkeys(cases, "one line")
