"""Curves: means of stretches, cut back to where a training stands, whole files or none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines.errors import SsrError
from pipelines.training.curves import Curves


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "train/curves.jsonl"


def test_a_line_is_the_mean_of_its_stretch(path):
    curves = Curves(path)
    assert curves.add({"loss": 1.0, "rate": 4.0}, 1, end=False) is None
    assert curves.add({"loss": 2.0, "rate": 2.0}, 2, end=False) is None
    assert curves.add({"loss": 6.0, "rate": 0.0}, 3, end=True) == {"loss": 3.0, "rate": 2.0}
    assert curves.add({"loss": 5.0, "rate": 1.0}, 4, end=True) == {"loss": 5.0, "rate": 1.0}  # nothing of the one before
    curves.write({"iteration": 4, "val_miou": 0.5})
    assert curves.lines == [
        {"iteration": 3, "loss": 3.0, "rate": 2.0},
        {"iteration": 4, "loss": 5.0, "rate": 1.0},
        {"iteration": 4, "val_miou": 0.5},
    ]
    assert not path.exists()
    curves.flush()
    assert [json.loads(line) for line in path.read_text().splitlines()] == curves.lines


def test_a_stretch_is_gone_on_with(path):
    stopped = Curves(path)
    stopped.add({"loss": 1.0}, 1, end=False)
    curves = Curves(path)
    curves.open(1, json.loads(json.dumps(stopped.waiting)))
    assert curves.add({"loss": 2.0}, 2, end=True) == {"loss": 1.5}


@pytest.mark.parametrize(("iteration", "kept"), [(0, 0), (9, 0), (10, 2), (25, 3), (30, 4), (99, 4)])
def test_opened_at_a_step_it_forgets_what_came_later(path, iteration, kept):
    written = Curves(path)
    written.lines = [{"iteration": 10, "loss": 0.1}, {"iteration": 10, "val_miou": 0.2}, {"iteration": 20, "loss": 0.3}]
    written.lines.append({"iteration": 30, "loss": float("nan")})
    written.flush()
    curves = Curves(path)
    curves.open(iteration)
    assert [json.dumps(line) for line in curves.lines] == [json.dumps(line) for line in written.lines[:kept]]
    curves.write({"iteration": iteration + 1, "loss": 1.0})
    curves.flush()
    assert len(path.read_text().splitlines()) == kept + 1


def test_without_a_file_it_begins_empty(path):
    curves = Curves(path)
    curves.lines = [{"iteration": 1.0}]
    curves.open(5)
    assert curves.lines == []
    path.parent.mkdir()
    path.touch()
    curves.open(5)
    assert curves.lines == []


@pytest.mark.parametrize("bad", ['{"iteration": 2, "lo', "[1, 2]", "3", '{"loss": 1}', '{"iteration": "two"}', "", "\x00"])
def test_a_damaged_line_is_one_clear_error(path, bad):
    path.parent.mkdir()
    path.write_text(f'{{"iteration": 1, "loss": 2.0}}\n{bad}\n{{"iteration": 3, "loss": 1.0}}\n')
    with pytest.raises(SsrError, match=f"{path}, line 2: expected .*remove the file") as caught:
        Curves(path).open(5)
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text_are_one_clear_error(path):
    path.parent.mkdir()
    path.write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(SsrError, match="line 1"):
        Curves(path).open(5)
