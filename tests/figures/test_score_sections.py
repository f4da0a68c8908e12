from __future__ import annotations

import dataclasses

from pipelines.evaluation.report import Report
from pipelines.figures.score_sections import ablation_section, report_section

REPORT = Report(
    what="masks",
    split="<train>",
    images=3,
    miou=0.5,
    miou_covered=None,
    pixel_accuracy=0.9,
    precision=None,
    recall=0.25,
    confusion_ratio=None,
    classes_never_hit=0,
    coverage=1.0,
    per_class_iou={"background": 0.75, "c&t": 0.25, "absent": None},
    options_digest="0",
    rules={"miou": "a < b"},
)


def test_ablation_has_a_gain_from_the_second_row_on() -> None:
    html = ablation_section([("initial CAM", REPORT), ("+ <CLIP>", dataclasses.replace(REPORT, miou=0.6234))])
    assert html.count("<tr>") == 3
    assert "50.00" in html
    assert "62.34" in html
    assert "+12.34" in html
    assert "+ &lt;CLIP&gt;" in html
    assert "split &lt;train&gt;" in html
    assert 'width:62.3%' in html  # fmt: skip


def test_report_lists_the_classes_that_there_are_and_escapes() -> None:
    html = report_section(REPORT, b"png", {"c&t": (1, 2, 3)})
    assert "c&amp;t" in html
    assert "absent" not in html
    assert "width:25.0%;background:rgb(1,2,3)" in html
    assert "data:image/png;base64,cG5n" in html
    assert "a &lt; b" in html
    assert "<img" not in report_section(REPORT, None, {})
