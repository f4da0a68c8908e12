from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pipelines.evaluation.figures import compare_figure, confusion_figure, iou_figure
from pipelines.evaluation.metrics import metrics_from_counts
from pipelines.evaluation.report import Report


def random_counts(classes: int, seed: int = 0) -> NDArray[np.int64]:
    counts = np.random.default_rng(seed).integers(1, 50, (classes, classes + 1))
    counts += 400 * np.eye(classes, classes + 1, dtype=np.int64)
    counts[-1] = 0  # the last class is not in the ground truth
    return counts


def report_of(counts: NDArray[np.int64], oracle: bool = False) -> Report:
    names = ["background", *(f"class {index}" for index in range(1, len(counts)))]
    metrics = metrics_from_counts(counts, names)
    return Report(
        **metrics.summary, what="cams", split="val", images=1234, options_digest="", background_power=6.0, oracle=oracle
    )


def texts(figure: Figure) -> str:
    axes_texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    return "\n".join([text.get_text() for text in figure.texts] + axes_texts)


@pytest.mark.parametrize("classes", [2, 21, 81])
def test_confusion_figure_shows_shares_of_each_row(classes: int) -> None:
    counts = random_counts(classes)
    figure = confusion_figure(counts, report_of(counts))
    (picture,) = figure.axes[0].images
    shown = np.ma.filled(picture.get_array().astype(float), np.nan)  # type: ignore[union-attr]
    np.testing.assert_allclose(np.nansum(shown[:-1], axis=1), 1)
    assert np.isnan(shown[-1]).all()
    assert shown[0, 1] == counts[0, 1] / counts[0].sum()
    labels = [tick.label1.get_text() for tick in figure.axes[0].xaxis.get_major_ticks()]
    assert labels[0] == "background"
    assert labels[-1] == "255 (ignore)"
    assert len(labels) == classes + 1


def test_confusion_figure_has_no_ignore_column_where_nothing_is_ignored() -> None:
    counts = random_counts(5)
    counts[:, -1] = 0
    assert len(confusion_figure(counts, report_of(counts)).axes[0].get_xticklabels()) == 5


def test_iou_figure_is_sorted_and_leaves_absent_classes_out() -> None:
    report = report_of(random_counts(81))
    figure = iou_figure(report)
    drawn = [label.get_text() for axes in figure.axes for label in axes.get_yticklabels()]
    known = {name: value for name, value in report.per_class_iou.items() if value is not None}
    assert drawn == sorted(known, key=lambda name: -known[name])
    widths = [bar.get_width() for axes in figure.axes for bar in axes.patches]  # type: ignore[attr-defined]
    np.testing.assert_allclose(widths, sorted(known.values(), reverse=True))
    assert f"mIoU {100 * report.miou:.2f} % over 80 classes (dashed line); 1 not in ground truth" in texts(figure)


def test_compare_figure_orders_by_gain() -> None:
    first, second = report_of(random_counts(21, seed=1)), report_of(random_counts(21, seed=2))
    figure = compare_figure(first, second, ("clip-es", "ssr"))
    gains = [float(text.get_text()) for text in figure.axes[0].texts]
    assert len(gains) == 20
    assert gains == sorted(gains, reverse=True)
    assert f"({100 * (second.miou - first.miou):+.2f} mIoU)" in texts(figure)


def test_compare_figure_needs_a_common_class() -> None:
    cat = Report(
        **metrics_from_counts(np.array([[1, 0]]), ["cat"]).summary, what="masks", split="a", images=1, options_digest=""
    )
    with pytest.raises(ValueError, match="no scored class in common"):
        compare_figure(cat, report_of(random_counts(3)))


@pytest.mark.parametrize("oracle", [True, False])
def test_every_figure_says_oracle(oracle: bool) -> None:
    counts = random_counts(3)
    report = report_of(counts, oracle)
    for figure in (confusion_figure(counts, report), iou_figure(report), compare_figure(report, report)):
        assert ("ORACLE" in texts(figure)) == oracle


def test_does_not_load_pyplot() -> None:
    code = "import sys, pipelines.evaluation.figures, pipelines.figures.panel; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
