from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipelines.errors import SsrError
from pipelines.evaluation.metrics import Metrics, metrics_from_counts
from pipelines.evaluation.report import Report, read_report, rules, write_csv, write_report

COUNTS = np.array([[6, 2, 0, 2], [1, 3, 0, 0], [0, 0, 0, 0]])
NAMES = ["background", "Katze, groß", "cow"]
WANTED_KEYS = {
    *("miou", "per_class_iou", "precision", "recall", "confusion_ratio", "pixel_accuracy", "images", "split", "rules"),
    *("options_digest", "miou_covered", "coverage", "what", "boundary", "background_power", "oracle", "confusion_matrix"),
}


@pytest.fixture
def metrics() -> Metrics:
    return metrics_from_counts(COUNTS, NAMES)


@pytest.fixture
def report(metrics: Metrics) -> Report:
    return Report(**metrics.summary, what="masks", split="train", images=3, options_digest="a1b2", boundary="crf")


def test_round_trip(tmp_path: Path, report: Report) -> None:
    path = tmp_path / "eval" / "masks" / "report.json"
    write_report(report, path)
    assert read_report(path) == report
    assert [file.name for file in path.parent.iterdir()] == ["report.json"]


def test_keys_and_values_of_the_file(tmp_path: Path, report: Report, metrics: Metrics) -> None:
    write_report(report, tmp_path / "report.json")
    content = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert set(content) >= WANTED_KEYS
    assert content["miou"] == pytest.approx(metrics.miou)
    assert content["per_class_iou"] == {"background": 6 / 11, "Katze, groß": 0.5, "cow": None}
    assert content["boundary"] == "crf"
    assert content["oracle"] is False


@pytest.mark.parametrize(
    ("power", "oracle", "background"),
    [
        (None, False, "class 0 of the label maps"),
        (1.0, False, "(1 - max cam)^p, p = 1 (fixed)"),
        (1.5, False, "(1 - max cam)^p, p = 1.5 (fixed)"),
        (6.0, True, "(1 - max cam)^p, p = 6 chosen on ground truth: an ORACLE"),
    ],
)
def test_rules_and_caption_name_an_oracle(metrics: Metrics, power: float | None, oracle: bool, background: str) -> None:
    report = Report(
        **metrics.summary,
        what="cams",
        split="val",
        images=1,
        options_digest="",
        background_power=power,
        oracle=oracle,
        rules=rules(power, oracle=oracle),
    )
    assert report.rules["background"] == background
    assert ("ORACLE" in report.caption) == oracle
    assert report.caption.startswith("cams · split val · 1 image")


def test_an_oracle_must_name_its_power(report: Report) -> None:
    with pytest.raises(ValueError, match="background_power"):
        replace(report, oracle=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"miou": 68.9}, "miou: Input should be less than or equal to 1"),
        ({"per_class_iou": {"cat": 40}}, "per_class_iou.cat: "),
        ({"split": None}, "split: "),
        ({"images": 0}, "images: "),
        ({"miou": "NaN"}, "miou: "),
        ({"oracle": True}, "background_power"),
    ],
)
def test_reading_checks_values(tmp_path: Path, report: Report, change: dict[str, object], message: str) -> None:
    path = tmp_path / "report.json"
    write_report(report, path)
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | change), encoding="utf-8")
    with pytest.raises(SsrError, match=message) as caught:
        read_report(path)
    assert "\n" not in str(caught.value)


def test_reading_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(SsrError, match=r"cannot read .*report\.json"):
        read_report(tmp_path / "report.json")


def test_csv(tmp_path: Path, metrics: Metrics) -> None:
    write_csv(metrics, tmp_path / "classes.csv")
    with (tmp_path / "classes.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == NAMES
    assert rows[1] == {"class": NAMES[1], "iou": "0.500000", "precision": "0.600000", "recall": "0.750000", "pixels": "4"}
    assert rows[2] == {"class": "cow", "iou": "", "precision": "", "recall": "", "pixels": "0"}
