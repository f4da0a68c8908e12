from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.datasets.names import check_image_id
from pipelines.datasets.splits import read_split, split_file
from pipelines.errors import UsageError


@pytest.mark.parametrize("image_id", ["2007_000032", "my photo", "a.b", "a..b", "été-図", "a" * 200])
def test_safe_ids_pass(image_id: str) -> None:
    assert check_image_id(image_id, "here") == image_id


@pytest.mark.parametrize("image_id", ["", " a", ".", "a" * 201, "a\nb"])
def test_unsafe_ids_are_refused_in_one_line(image_id: str) -> None:
    """More of them in tests/hostile/test_ids.py."""
    with pytest.raises(UsageError, match=r"^here: image id ") as caught:
        check_image_id(image_id, "here")
    assert str(caught.value).isprintable()


def test_split_takes_bom_crlf_comments_and_blanks(tmp_path: Path) -> None:
    path = tmp_path / "s.txt"
    path.write_bytes("\ufeffb\r\n\r\n# note\r\n  a  \r\nc d".encode())
    assert read_split(path) == ("b", "a", "c d")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\n\nb\na\n", r"s\.txt:4: image id 'a' is on line 1 already"),
        (b"\n# only this\n", "found none"),
        (b"\xff\xfe\x00", "expected a split of UTF-8 lines"),
        (b"\xe9\n", "expected a split of UTF-8 lines"),
    ],
)
def test_bad_split(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "s.txt"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=message):
        read_split(path)


def test_missing_split_and_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot read the split: No such file"):
        read_split(tmp_path / "s.txt")
    with pytest.raises(UsageError, match="cannot read the split: Is a directory"):
        read_split(tmp_path)


def test_split_names_and_files() -> None:
    assert split_file("train") is None
    assert split_file("some/where.txt") == Path("some/where.txt")
    with pytest.raises(UsageError, match=r"--split: expected the name of a split or a list FILE\.txt, found '\.\./train'"):
        split_file("../train")
