"""The checksum of a store's file: whatever byte is flipped, a reader says so or reads what was written, and never crashes."""

from __future__ import annotations

import multiprocessing
import random
from pathlib import Path

import h5py
import numpy as np
import pytest

from pipelines.errors import SsrError
from pipelines.stores import array_file
from pipelines.stores.array_file import USER_BLOCK, open_file
from pipelines.stores.array_store import ArrayReader, ArrayWriter


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "s.h5"
    with ArrayWriter(path) as writer:
        for number in range(3):
            writer.add(f"im{number}", np.arange(40, dtype=np.int16).reshape(5, 8) * number, {"labels": [number]})
    return path


def test_it_is_plain_hdf5(store: Path) -> None:
    with h5py.File(store) as file:
        assert file.userblock_size == USER_BLOCK
        assert sorted(file) == ["im0", "im1", "im2"]
    assert store.read_bytes().startswith(b"ssr array store, sha256 of what follows: ")


def _reads(path: str, said: multiprocessing.connection.Connection) -> None:
    try:
        with ArrayReader(Path(path)) as reader:
            for number in range(3):
                try:
                    array, attributes = reader.read(f"im{number}")
                    right = (array == np.arange(40).reshape(5, 8) * number).all() and attributes == {"labels": [number]}
                    said.send("right" if right else "wrong")
                except SsrError:
                    said.send("refused")
    except SsrError:
        said.send("refused")


@pytest.mark.slow
def test_flips_anywhere(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the look ahead in a process of its own, some of these flips crash or hang HDF5."""
    content, moments = store.read_bytes(), random.Random(0)
    context = multiprocessing.get_context("fork")
    monkeypatch.setattr(array_file, "_PATIENCE", 5.0)
    outcomes: list[str] = []
    for _ in range(30):
        damaged = bytearray(content)
        damaged[moments.randrange(len(content))] ^= 1 << moments.randrange(8)
        store.write_bytes(damaged)
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_reads, args=(str(store), theirs))
        process.start()
        theirs.close()
        process.join(30)
        assert process.exitcode == 0
        while ours.poll():
            try:
                outcomes.append(ours.recv())
            except EOFError:
                break
    assert "wrong" not in outcomes
    assert "refused" in outcomes


def test_a_file_that_would_crash_the_library_is_refused(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    damaged = bytearray(store.read_bytes())
    damaged[-1] ^= 1
    store.write_bytes(damaged)
    monkeypatch.setattr(array_file, "_READ_ALL", "import os; os.abort()")
    with pytest.raises(SsrError, match=r"s\.h5 is damaged: its checksum does not match .*run its stage again"):
        open_file(store)
    monkeypatch.setattr(array_file, "_READ_ALL", "import time; time.sleep(60)")
    monkeypatch.setattr(array_file, "_PATIENCE", 0.5)
    with pytest.raises(SsrError, match="its checksum does not match"):
        open_file(store)


def test_a_file_made_elsewhere_is_read(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "s.h5", "w") as file:
        file["a"] = np.zeros(2)
    with ArrayReader(tmp_path / "s.h5") as reader:
        assert reader.ids() == ["a"]
