"""The drawn set and the models in the package, through the command line: what `make all` does, on fewer pictures."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from pipelines.stages import ablation

PHOTOS, VAL = 8, 2


@pytest.fixture(scope="module")
def chain(ssr, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What each command of the chain said, and the work directory."""
    work = tmp_path_factory.mktemp("chain") / "sample"
    said = {"work": str(work), "sample": ssr("sample", "--work", work, "--train", PHOTOS, "--val", VAL).text}
    for command in (
        "doctor",
        "superpixels",
        "align --iterations 40 --refresh 10",
        "cams --ckpt auto",
        "refine --boundary auto",
        "eval masks",
        "train --ckpt auto --iterations 6 --warmup 2 --cache-views 1",
        "predict",
        "predict --split val",
        "eval predictions --split val",
        "ablation",
        "eval ablation",
        "report --gt --count 3",
    ):
        said[command] = ssr(*command.split(), "--config", work / "sample.toml").text
    return said


def test_every_step_names_the_next(chain: dict[str, str]) -> None:
    assert "next: ssr superpixels --config" in chain["sample"]
    assert "next: ssr cams" in chain["superpixels"]
    assert "next: ssr report" in chain["eval ablation"]
    assert re.search(r"report: .*report\.html", chain["report --gt --count 3"])


def test_doctor_finds_nothing_wrong_with_set_and_models(chain: dict[str, str]) -> None:
    assert "image and text tower" in chain["doctor"]
    assert "error" not in chain["doctor"].lower()


def test_masks_are_far_better_than_chance_and_than_the_first_cam(chain: dict[str, str]) -> None:
    scores = dict(ablation.scored(Path(chain["work"])))
    masks = json.loads((Path(chain["work"]) / "eval" / "masks" / "report.json").read_text())
    assert masks["miou"] > 0.5
    assert masks["miou"] > scores[ablation.INITIAL].miou
    assert scores[ablation.ALIGNED].miou > scores[ablation.INITIAL].miou - 0.01, "few pictures teach little, and harm as little"
    assert scores[f"+ {masks['boundary'].upper()}"].miou == pytest.approx(masks["miou"]), (
        "the last row of the masks is what `ssr refine` makes"
    )


def test_the_model_and_its_val_score_end_the_ablation(chain: dict[str, str]) -> None:
    *_, own, other = ablation.scored(Path(chain["work"]))
    assert own[0] == ablation.MODELS["predictions"]
    assert own[1].images == PHOTOS
    assert other[0] == f"{ablation.MODELS['predictions']}, split val"
    assert other[1].images == VAL
    rows = chain["eval ablation"].splitlines()
    assert next(row for row in rows if "split val" in row).count("+") == 0, "another split gains nothing over this one"


def test_the_page_has_the_ablation_and_needs_nothing_else(chain: dict[str, str]) -> None:
    page = (Path(chain["work"]) / "report.html").read_text(encoding="utf-8")
    assert "<h2>Ablation</h2>" in page
    assert page.count("<article") == 3
    assert not re.search(r"(?:src|href)=\"(?!data:|#)", page)


def test_a_second_run_draws_and_computes_nothing(chain: dict[str, str], ssr) -> None:
    work = Path(chain["work"])
    before = {path: path.stat().st_mtime_ns for path in work.rglob("*.png") if "eval" not in path.parts}
    ssr("sample", "--work", work, "--train", PHOTOS, "--val", VAL)
    for command, count in (
        ("superpixels", PHOTOS),
        ("align --iterations 40 --refresh 10", PHOTOS),
        ("cams --ckpt auto", PHOTOS),
        ("refine --boundary auto", PHOTOS),
        ("predict", PHOTOS),
        ("ablation", 4 * PHOTOS),
    ):
        assert f"{count} already done" in ssr(*command.split(), "--config", work / "sample.toml").text
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_without_a_folder_it_goes_to_runs_sample(ssr, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ssr("sample", "--train", 1, "--val", 1)
    assert (tmp_path / "runs" / "sample" / "sample.toml").is_file()
    assert "belongs" not in ssr("sample", "--train", 1, "--val", 1).text
    assert "--force" in ssr("sample", "--train", 1, "--val", 1, "--seed", 3, code=2).err
