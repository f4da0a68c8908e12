from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pipelines.errors import SsrError
from pipelines.stores.files import atomic_path, read_json, remove_leftovers, write_json


def _names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_target_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder" / "a.bin"
    with atomic_path(target) as temporary:
        assert temporary.parent == target.parent  # rename within one file system
        temporary.write_bytes(b"half")
        assert not target.exists()
    assert target.read_bytes() == b"half"
    assert _names(target.parent) == ["a.bin"]


@pytest.mark.parametrize(
    "error", [ValueError("x"), KeyboardInterrupt(), SsrError("mine"), OSError(28, "No space left on device")]
)
def test_an_error_leaves_the_old_content_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    expected = SsrError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected) as caught, atomic_path(target) as temporary:  # noqa: PT012
        temporary.write_text("new")
        raise error
    assert target.read_text() == "old"
    assert _names(tmp_path) == ["a.txt"]
    if isinstance(error, OSError):
        assert "No space left on device" in str(caught.value)
        assert "--work" in str(caught.value)


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_mode_honours_umask(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        write_json(tmp_path / "a.json", 1)
        assert os.umask(umask) == umask  # put back
    finally:
        os.umask(before)
    assert (tmp_path / "a.json").stat().st_mode & 0o777 == mode


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(SsrError, match=r"cannot write .*Permission denied"):
        write_json(tmp_path / "a.json", 1)


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("")
    with pytest.raises(SsrError, match=r"cannot write .*a\.json"):
        write_json(tmp_path / "f" / "a.json", 1)


def test_json_round_trip_has_one_spelling(tmp_path: Path) -> None:
    content = {"b": [1, 2.5, None], "a": "é"}
    write_json(tmp_path / "a.json", content)
    write_json(tmp_path / "b.json", dict(reversed(content.items())))
    assert read_json(tmp_path / "a.json") == content
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not valid JSON"),
        (b"", "is not valid JSON"),
        (b"\xff\xfe", "is not valid JSON"),
        (None, "cannot read .*No such file"),
    ],
)
def test_bad_json(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SsrError, match=message):
        read_json(path)


def test_unwritable_content_leaves_the_old_file(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", 1)
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"x": object()})
    assert json.loads((tmp_path / "a.json").read_text()) == 1
    assert _names(tmp_path) == ["a.json"]


def test_leftovers_of_a_kill_go_and_nothing_else(tmp_path: Path) -> None:
    for name in (".a.h5.x1.tmp", "a.tmp", ".hidden", "a.h5"):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path)
    remove_leftovers(tmp_path / "absent")
    assert _names(tmp_path) == [".hidden", "a.h5", "a.tmp"]
