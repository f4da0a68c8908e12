from __future__ import annotations

import builtins
import io
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from pipelines.datasets.classes import VOC12
from pipelines.datasets.onehot import read_onehot_npy
from pipelines.errors import SsrError


def row(*present: int, columns: int = 20, dtype: type = np.float32) -> np.ndarray:
    values = np.zeros(columns, dtype)
    values[list(present)] = 1
    return values


def save(path: Path, content: object) -> Path:
    np.save(path, np.array(content, dtype=object), allow_pickle=True)
    return path


def with_header(path: Path, pickled: bytes) -> Path:
    """A .npy whose header is right and whose pickle is anything."""
    save(path, {})
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"\n") + 1] + pickled)
    return path


@pytest.mark.parametrize("protocol", [3, 4])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, ">f8", np.uint8, np.int64, bool])
def test_reads_what_numpy_saves(tmp_path: Path, dtype: type, protocol: int) -> None:
    content = np.array({"b": row(14, 0, dtype=dtype), np.str_("é図"): row(dtype=dtype)[::-1]}, dtype=object)
    path = with_header(tmp_path / "l.npy", pickle.dumps(content, protocol))
    assert list(read_onehot_npy(path, VOC12).items()) == [("b", (0, 14)), ("é図", ())]


@pytest.mark.parametrize("module", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_reads_old_and_new_module_names(tmp_path: Path, module: bytes) -> None:
    pickled = pickle.dumps(np.array({"a": row(3)}, dtype=object), protocol=3)  # text opcodes: the name can be swapped in place
    pickled = pickled.replace(b"numpy._core.multiarray", module)
    assert module in pickled
    assert read_onehot_npy(with_header(tmp_path / "l.npy", pickled), VOC12) == {"a": (3,)}


class Evil:
    def __init__(self, call: object, *args: object) -> None:
        self.call, self.args = call, args

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.call, self.args


@pytest.mark.parametrize("place", ["value", "key", "top", "bare"])
@pytest.mark.parametrize("call", ["system", "open", "eval"])
def test_malicious_pickle_does_not_run(tmp_path: Path, place: str, call: str) -> None:
    target = tmp_path / "touched"
    evil = {
        "system": Evil(os.system, f"touch '{target}'"),
        "open": Evil(io.open, str(target), "w"),
        "eval": Evil(builtins.eval, f"open({str(target)!r}, 'w')"),
    }[call]
    path = tmp_path / "l.npy"
    match place:
        case "value":
            save(path, {"a": evil})
        case "key":
            save(path, {evil: row()})
        case "top":
            with_header(path, pickle.dumps(evil))
        case "bare":
            path.write_bytes(pickle.dumps(evil))
    with pytest.raises(SsrError, match=r"l\.npy: expected a NumPy dict of one-hot rows; refused: ") as caught:
        read_onehot_npy(path, VOC12)
    assert "\n" not in str(caught.value)
    assert not target.exists()


@pytest.mark.parametrize(
    "pickled",
    [
        b"cnumpy\nload\n(S'x'\ntR.",
        b"cnumpy._core.multiarray\nfrombuffer\n(S'x'\ntR.",
        b"\x80\x04\x8c\x05numpy\x8c\x13ndarray.__reduce_ex__\x93.",  # a dotted name inside an admitted class
        b"cbuiltins\ngetattr\n.",
        b"Pxyz\n.",  # persistent id
        b"\x80\x04",
        b"",
        b"garbage",
    ],
)
def test_anything_but_arrays_is_refused(tmp_path: Path, pickled: bytes) -> None:
    with pytest.raises(SsrError, match="refused: "):
        read_onehot_npy(with_header(tmp_path / "l.npy", pickled), VOC12)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": row(columns=80)}, r"entry 'a': expected 20 columns, found shape \(80,\)"),
        *(({"a": row() + value}, "entry 'a': expected zeros and ones") for value in (np.nan, np.inf, -1, 2, 0.5, 0.999)),
        ({"a": [1, 0]}, "entry 'a': expected an array of numbers, found list"),
        ({"a": np.array(["x"])}, "entry 'a': expected an array of numbers"),
        ({-1: row()}, "expected image ids as keys, found -1"),
        ({"../a": row()}, "entry '../a': image id '../a' has path separators"),
    ],
)
def test_wrong_content(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(SsrError, match=message):
        read_onehot_npy(save(tmp_path / "l.npy", content), VOC12)


def test_plain_arrays_and_missing_files(tmp_path: Path) -> None:
    np.save(tmp_path / "l.npy", row())
    with pytest.raises(SsrError, match=r"refused: an array of float32, shape \(20,\)"):
        read_onehot_npy(tmp_path / "l.npy", VOC12)
    with pytest.raises(SsrError, match="cannot read labels: No such file"):
        read_onehot_npy(tmp_path / "absent.npy", VOC12)
    (tmp_path / "l.npy").write_bytes(b"")
    with pytest.raises(SsrError, match="refused: "):
        read_onehot_npy(tmp_path / "l.npy", VOC12)
    with pytest.raises(SsrError, match="found NoneType"):
        read_onehot_npy(with_header(tmp_path / "l.npy", pickle.dumps(np.array(None), 4)), VOC12)
