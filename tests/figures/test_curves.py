"""The picture of a training: what is drawn, and that few lines or none draw without a murmur."""

from __future__ import annotations

import warnings

import pytest
from matplotlib.figure import Figure
from PIL import Image

from pipelines.figures import curves
from pipelines.figures.curves import curves_figure

LABELS = {"segmentation": "cross-entropy", "affinity": "affinity loss", "prototype": "L_proto"}


def step(iteration: int, affinity: float = 0.0, prototype: float = 0.0) -> dict[str, float]:
    losses = {"segmentation": 1 / iteration, "affinity": affinity, "prototype": prototype}
    return {"iteration": iteration, **losses, "learning_rate": 0.1}


def score(iteration: int) -> dict[str, float]:
    return {"iteration": iteration, "val_miou": iteration / 100}


CASES = {
    # lines -> labels and points of each drawn line, axis by axis
    "nothing": ([], [[]]),
    "a score alone": ([score(4)], [[], [("", 1)]]),
    "losses": ([step(10), step(20)], [[("cross-entropy", 2)]]),
    "affinity from its first value on": ([step(10), step(20, 0.3)], [[("cross-entropy", 2), ("affinity loss", 2)]]),
    "heads": ([step(10, 0, 7.0)], [[("cross-entropy", 1), ("L_proto", 1)]]),
    "both": ([step(10), score(10), step(20), score(20), step(30)], [[("cross-entropy", 3)], [("", 2)]]),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_drawn(tmp_path, monkeypatch, case):
    lines, expected = CASES[case]
    drawn: list[Figure] = []
    save = curves.save_figure
    monkeypatch.setattr(curves, "save_figure", lambda figure, path: (drawn.append(figure), save(figure, path))[1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        curves_figure(lines, tmp_path / "curves.png", LABELS)
    (figure,) = drawn
    assert [
        [("" if line.get_label().startswith("_") else line.get_label(), len(line.get_xdata())) for line in axis.lines]
        for axis in figure.axes
    ] == expected
    with Image.open(tmp_path / "curves.png") as picture:
        assert (picture.width > 800) == (len(expected) == 2)
    if case == "both":
        assert figure.axes[1].lines[0].get_ydata() == pytest.approx([10, 20])  # per cent
