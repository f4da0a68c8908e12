"""The ablation: each row has one part more than the one before, and is what `ssr refine` makes with its options."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from pipelines.config import read_recipe
from pipelines.errors import SsrError
from pipelines.method.affinity import AFFINITIES, attention_needs
from pipelines.method.column_masks import COLUMN_MASKS
from pipelines.method.evidence import Needs, Part, always
from pipelines.options.align import AlignOptions
from pipelines.options.stages import CamsOptions, EvalOptions, RefineOptions, ShowOptions
from pipelines.stages import ablation, cams, report
from pipelines.stages.align import stage as align
from pipelines.stages.refine import stage as refine
from pipelines.stores.array_store import iter_records

SSR = RefineOptions(**read_recipe("ssr")["refine"])
CAMS = CamsOptions(**read_recipe("ssr")["cams"])
CLIP_ES = RefineOptions(**read_recipe("clip-es")["refine"])

ROWS = {
    "ssr": (SSR, ["clip", "dino", "superpixels"]),
    "clip-es": (CLIP_ES, ["clip", "box"]),
    "cd-clip": (RefineOptions(**read_recipe("cd-clip")["refine"]), ["clip", "filter"]),
    "dino alone": (RefineOptions(dino_weight=1.0), ["dino"]),
    "no dino": (RefineOptions(dino_weight=0.0, superpixel_mask="gate"), ["clip", "superpixels"]),
}


@pytest.mark.parametrize("name", ROWS)
def test_rows_are_the_parts_of_the_recipe_in_order(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options, expected = ROWS[name]
    monkeypatch.setattr("importlib.util.find_spec", lambda module: None)
    for asked, made in (("none", "par"), ("auto", "par"), ("par", "par"), ("crf", "crf")):
        rows = ablation.rows(options.model_copy(update={"boundary": asked}))
        assert [row.name for row in rows] == [*expected, "boundary"]
        assert rows[-1].title == f"+ {made.upper()}"
        assert rows[-1].options == options.model_copy(update={"boundary": made})
        assert rows[-2].options == options.model_copy(update={"boundary": "none"}), "the row before it is the recipe"


@pytest.mark.parametrize(
    ("needs", "expected"),
    [
        (always("dino_tokens"), ["+ affinity mine", "+ bright"]),
        (always("clip_attention", "dino_attention"), ["+ affinity mine", "+ bright"]),
        (attention_needs, ["+ CLIP affinity", "+ DINO affinity", "+ bright"]),
    ],
)
def test_rows_of_parts_from_a_plugin(monkeypatch: pytest.MonkeyPatch, needs: Callable[..., Needs], expected: list[str]) -> None:
    monkeypatch.setitem(AFFINITIES, "mine", Part(lambda *_: torch.ones(1), needs))
    monkeypatch.setitem(COLUMN_MASKS, "bright", Part(lambda *_: torch.ones(1), always()))
    rows = ablation.rows(RefineOptions(affinity="mine", superpixel_mask="bright", boundary="par"))
    assert [row.title for row in rows] == [*expected, "+ PAR"]


def test_each_row_changes_one_thing() -> None:
    rows = ablation.rows(SSR.model_copy(update={"boundary": "crf"}))
    for before, after in pairwise(rows):
        old, new = before.options.model_dump(), after.options.model_dump()
        assert len({key for key in old if old[key] != new[key]}) == 1, after.title


def masks(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.png")}


def test_rows_equal_refine_and_their_scores_equal_eval(workspace, workspace_in, tmp_path) -> None:
    assert ablation.run(workspace, SSR).done == 6 * 4
    assert ablation.run(workspace, SSR).skipped == 6 * 4
    scores = ablation.score(workspace, EvalOptions(pictures=False), 1.0)
    assert [title for title, _ in scores] == [ablation.INITIAL, *(row.title for row in ablation.rows(SSR))]
    assert ablation.scored(workspace.work) == scores
    for row, (_, found) in zip(ablation.rows(SSR), scores[1:], strict=True):
        alone = tmp_path / row.name
        refine.run_targets(workspace, [refine.Target(row.options, alone)])
        assert masks(alone / "masks") == masks(workspace.work / "ablation" / row.name / "masks")
        from pipelines.stages import evaluate

        place = dataclasses.replace(workspace, work=alone)
        again = evaluate.run(place, "masks", EvalOptions(pictures=False), 1.0)[0].report
        assert again.miou == found.miou


def test_aligned_cams_stand_above_those_of_plain_clip(workspace) -> None:
    """The first row is what `ssr cams` makes without heads, whatever its read-out; the second is the directory's own."""
    plain = {image_id: array.tobytes() for image_id, (array, _) in iter_records(workspace.cams)}
    align.run(workspace, AlignOptions(iterations=2, tokens=8), CAMS, SSR)
    cams.run(dataclasses.replace(workspace, force=True), CAMS.model_copy(update={"ckpt": Path("auto"), "few_photos": 0.0}))
    options = SSR.model_copy(update={"dino_weight": 0.0, "superpixel_mask": "none"})
    ablation.run(dataclasses.replace(workspace, force=True), options)
    made = {image_id: array.tobytes() for image_id, (array, _) in iter_records(workspace.work / "ablation/plain/cams.h5")}
    assert made == plain
    scores = ablation.score(workspace, EvalOptions(pictures=False), 1.0)
    assert [title for title, _ in scores][:3] == [ablation.INITIAL, ablation.ALIGNED, "+ CLIP affinity"]
    assert scores[0][1].miou != scores[1][1].miou
    assert ablation.scored(workspace.work) == scores
    cams.run(dataclasses.replace(workspace, force=True), CAMS)
    ablation.run(dataclasses.replace(workspace, force=True), options)
    assert not (workspace.work / "ablation/plain").exists(), "without heads there is one row of CAMs again"


def test_the_ablation_of_another_recipe_leaves_no_old_row(workspace) -> None:
    ablation.run(workspace, SSR)
    ablation.run(dataclasses.replace(workspace, force=True), CLIP_ES)
    assert not (workspace.work / "ablation" / "superpixels").exists()
    assert (workspace.work / "ablation" / "box" / "masks").is_dir()
    assert ablation.scored(workspace.work) == [], "scores of one ablation are not those of another"


def test_no_ablation_is_one_line(workspace) -> None:
    with pytest.raises(SsrError, match="no ablation"):
        ablation.score(workspace, EvalOptions(), 1.0)
    assert ablation.scored(workspace.work) == []


def test_report_shows_ablation_scores_and_pictures_and_opens_no_truth_unasked(workspace) -> None:
    ablation.run(workspace, SSR)
    page = report.run(workspace, ShowOptions(count=2)).read_text()
    assert "<h2>Ablation</h2>" not in page
    ablation.score(workspace, EvalOptions(), 1.0)
    page = report.run(workspace, ShowOptions(count=2)).read_text()
    assert "<h2>Ablation</h2>" in page
    for row in ablation.rows(SSR):
        assert row.title in page
    assert "confusion matrix" in page
    assert page.count("<article") == 2
    assert "not opened" in page
    assert "http" not in page.replace("http-equiv", "")
