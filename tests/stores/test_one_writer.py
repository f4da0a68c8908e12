"""A folder has one writer at a time."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.errors import SsrError
from pipelines.stores.one_writer import one_writer


def test_one_after_the_other(tmp_path: Path) -> None:
    folder = tmp_path / "a/b"
    with one_writer(folder, "training"), pytest.raises(SsrError, match=r"another process is training in .*a/b \(wait for it"):
        one_writer(folder, "training").__enter__()
    with one_writer(folder, "training"):
        pass


def test_it_waits(tmp_path: Path) -> None:
    with one_writer(tmp_path, "evaluating"), pytest.raises(SsrError, match="another process is evaluating"):
        one_writer(tmp_path, "evaluating", patience=0.2).__enter__()


def test_leftovers_go_and_an_error_frees_the_folder(tmp_path: Path) -> None:
    (tmp_path / ".curves.png.abcdefgh.tmp").write_bytes(b"half")
    with one_writer(tmp_path, "training"):
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    with pytest.raises(ZeroDivisionError), one_writer(tmp_path, "training"):
        _ = 1 / 0
    with one_writer(tmp_path, "training"):
        pass


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SsrError, match=r"cannot write .*file/folder: Not a directory \(choose another --work folder\)"):
        one_writer(tmp_path / "file/folder", "training").__enter__()
