from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines.errors import ImageError, TooManyFailures
from pipelines.execution.failures import Failures
from pipelines.execution.progress import Silent
from tests.fixtures.heard import Heard


def _lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


@pytest.mark.parametrize("limit", [0, 1, 3])
def test_the_one_after_the_limit_stops_the_run(tmp_path: Path, limit: int) -> None:
    path = tmp_path / "failures.jsonl"
    failures = Failures(path, "cams", limit, Silent())
    for number in range(limit):
        failures.add(f"im{number}", ImageError("bad"))
    expected = rf"bad image {limit + 1} of this run: last: torn; --max-failures allows {limit} "
    with pytest.raises(TooManyFailures, match=expected) as caught:
        failures.add("last", ImageError("torn"))
    assert "raise --max-failures" in str(caught.value)
    assert failures.count == len(_lines(path)) == limit + 1  # the last one is written down too


def test_any_number(tmp_path: Path) -> None:
    failures = Failures(tmp_path / "f.jsonl", "cams", -1, Silent())
    for number in range(50):
        failures.add(str(number), ImageError("bad"))
    assert failures.count == len(_lines(tmp_path / "f.jsonl")) == 50


def test_no_failure_no_file(tmp_path: Path) -> None:
    Failures(tmp_path / "f.jsonl", "cams", 0, Silent())
    assert not (tmp_path / "f.jsonl").exists()


def test_lines_and_notes(tmp_path: Path) -> None:
    notes = Heard()
    failures = Failures(tmp_path / "f.jsonl", "cams", -1, notes)
    failures.add("été", ImageError('a "quoted"\nline', "mend"))
    failures.add("b", ImageError("x"))
    assert _lines(tmp_path / "f.jsonl") == [
        {"stage": "cams", "image": "été", "error": 'a "quoted"\nline', "hint": "mend"},
        {"stage": "cams", "image": "b", "error": "x", "hint": None},
    ]
    assert notes.notes == ['été: a "quoted"\nline (mend)', "b: x"]


def test_a_new_run_drops_its_own_lines_only(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    Failures(path, "cams", -1, Silent()).add("a", ImageError("bad"))
    Failures(path, "refine", -1, Silent()).add("b", ImageError("bad"))
    with path.open("a") as file:
        file.write("[1]\nno json\n")  # not ours: left alone
    again = Failures(path, "cams", 0, Silent())
    assert again.count == 0
    lines = path.read_text().splitlines()
    assert [json.loads(lines[0])["image"], *lines[1:]] == ["b", "[1]", "no json"]


@pytest.mark.parametrize("character", ["\u2028", "\x85"])
def test_odd_line_ends_inside_a_message(tmp_path: Path, character: str) -> None:
    path = tmp_path / "f.jsonl"
    Failures(path, "cams", -1, Silent()).add("a", ImageError(f"x{character}y"))
    Failures(path, "refine", -1, Silent())
    assert [line["error"] for line in _lines(path)] == [f"x{character}y"]
