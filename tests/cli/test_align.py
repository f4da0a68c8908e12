"""The whole way with CMPA, as a person types it: superpixels, align, cams --ckpt, refine, eval."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from pipelines.stores.array_store import ArrayReader

SMALL = ("--iterations", 6, "--refresh", 3, "--tokens", 8, "--hidden", 8, "--batch", 2)
QUALITY = re.compile(
    r"align (\d+): (?:loss ([\d.]+), )?temperature ([\d.]+), cluster purity ([\d.]+) %, "
    r"distance within classes ([\d.]+), between ([\d.]+)"
)


@pytest.fixture(scope="module")
def way(finished, tiny_voc, ssr, tmp_path_factory):
    """What each command said, in order, and the work directory after them. Copy before changing."""
    work = tmp_path_factory.mktemp("way") / "work"
    said = {}
    for name, words in {
        "superpixels": ["superpixels"],
        "align": ["align", *SMALL],
        "status": ["status"],
        "cams": ["cams", "--ckpt", "auto"],
        "refine": ["refine"],
        "eval": ["eval", "--no-pictures"],
        "status, all done": ["status"],
    }.items():
        config = () if words[0] in {"status", "eval"} else ("--config", tiny_voc.config)
        said[name] = ssr(*words, *config, "--work", work)
    return work, said


@pytest.fixture
def work(way, tmp_path) -> Path:
    return Path(shutil.copytree(way[0], tmp_path / "work"))


def test_every_output_is_there(way, finished, tiny_voc):
    work, _ = way
    for store in ("superpixels", "cams", "refined"):
        with ArrayReader(work / f"{store}.h5") as reader:
            assert reader.ids() == sorted(tiny_voc.ids)
    assert json.loads((work / "cmpa.json").read_text())["complete"] is True
    assert {path.stem for path in (work / "masks").glob("*.png")} == set(tiny_voc.ids)
    assert 0 <= json.loads((work / "eval/masks/report.json").read_text())["miou"] <= 1
    assert (work / "cams.h5").read_bytes() != (finished["ssr"] / "cams.h5").read_bytes()


def test_progress_shows_loss_temperature_purity_and_rate(way):
    said = way[1]["align"].err
    found = QUALITY.findall(said)
    assert [(step, bool(loss)) for step, loss, *_ in found] == [("0", False), ("3", True), ("6", True)]  # steps that are done
    assert all(0 < float(purity) <= 100 and float(temperature) == 0.05 for _, _, temperature, purity, *_ in found)
    assert re.search(r"^align: patches: 5 images", said, re.MULTILINE)
    assert re.search(r"^align: 6 steps$", said, re.MULTILINE)
    assert re.search(r"^align: 6/6 in [\d.]+ s, [\d.]+ (steps/s|s/step)$", said, re.MULTILINE)
    assert re.search(r"\d+ s per 1,000 steps", said)
    assert "nan" not in said
    assert "Warning" not in said


def test_next_commands_lead_the_whole_way(way):
    work, said = way
    through = f"next: ssr cams --ckpt auto --work {work}\n"
    assert through in said["align"].out
    assert through in said["status"].out
    assert f"next: ssr refine --work {work}\n" in said["cams"].out
    assert f"next: ssr eval --work {work}\n" in said["refine"].out
    assert f"next: ssr report --work {work}\n" in said["status, all done"].out


def test_images_with_other_labels_go_through_the_heads_again(work, tiny_voc, ssr, tmp_path):
    root = Path(shutil.copytree(tiny_voc.root, tmp_path / "VOC2012"))
    (work / "work.json").write_text((work / "work.json").read_text().replace(str(tiny_voc.root), str(root)))
    labels = root / "Annotations/a_cat.xml"
    labels.write_text(labels.read_text().replace("cat", "dog"))
    said = ssr("status", "--work", work).out
    assert "cams: 1 images out of date" in said
    assert f"next: ssr cams --ckpt auto --work {work}\n" in said
    assert ", 5 already done" in ssr("cams", "--ckpt", "auto", "--work", work).err


def test_a_training_that_diverges_says_so_and_saves_nothing(tiny_voc, ssr, tmp_path):
    made = ("--config", tiny_voc.config, "--work", tmp_path / "work")
    ssr("superpixels", *made)
    said = ssr("align", *made, *SMALL, "--learning-rate", 1e30, code=1).err
    assert "is not a number (a lower --learning-rate, and --force to start over)" in said
    assert not (tmp_path / "work/align/state.safetensors").exists()


def test_status_has_a_row_of_the_heads(way, finished, ssr):
    _, said = way
    row = next(line for line in said["status"].out.splitlines() if "cmpa" in line and "│" in line)
    assert re.search(r"cmpa +│ 5/5 +│ done ", row)
    assert "cmpa" not in ssr("status", "--work", finished["ssr"]).out


def test_the_way_without_a_command_shows_the_heads(work, ssr, tmp_path, monkeypatch):
    from ssr_cli import console

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(console.out, "_width", 200)
    shutil.copytree(work, "runs/voc")
    line = next(line for line in ssr().out.splitlines() if re.match(r"\d +ssr align ", line))
    assert line.rstrip().endswith("5/5 done")


def test_second_run_does_nothing(work, ssr, tiny_voc):
    before = (work / "cmpa.safetensors").read_bytes()
    ran = ssr("align", "--config", tiny_voc.config, "--work", work, *SMALL)
    assert "align: 6 steps, 6 already done" in ran.err
    assert "per 1,000 steps" not in ran.err
    assert (work / "cmpa.safetensors").read_bytes() == before
    assert re.search(r"cmpa +│ 5/5 +│ done ", ssr("status", "--work", work).out)


@pytest.mark.parametrize("case", ["none", "folder", "text", "bank", "other bank", "state", "other classes"])
def test_a_wrong_checkpoint_is_one_line(work, ssr, tiny_voc, tiny_folder, models, tmp_path, case):
    (tmp_path / "text.safetensors").write_text("this is no checkpoint\n")
    ckpt, config, flags = work / "cmpa.safetensors", tiny_voc.config, ()
    if case == "other classes":
        config = tiny_folder.config
    elif case == "other bank":
        flags = ("--background-bank", models.voc_bank)
    else:
        ckpt = {
            "none": tmp_path / "none.safetensors", "folder": tmp_path, "text": tmp_path / "text.safetensors",
            "bank": models.voc_bank, "state": work / "align/state.safetensors",
        }[case]  # fmt: skip
    flags += ("--superpixel-share", 0, "--aligned-superpixel-share", 0)  # else superpixels are asked for first
    ran = ssr("cams", "--config", config, "--work", tmp_path / "new", "--ckpt", ckpt, *flags, code=2)
    errors = [line for line in ran.err.splitlines() if line.strip()]
    assert len(errors) == 1
    assert errors[0].startswith("error: ")
    assert "--ckpt" in errors[0]
    assert str(ckpt) in errors[0]
    assert not (tmp_path / "new/cams.h5").exists()


def test_bad_images_are_left_out_with_code_3(work, ssr, tiny_voc, tmp_path):
    root = Path(shutil.copytree(tiny_voc.root, tmp_path / "voc"))
    (root / "JPEGImages/c_bird.jpg").write_text("no photo")
    made = ("--config", tiny_voc.config, "--root", root, "--work", tmp_path / "new", "--recipe", "clip-es", "--cam", "initial")
    assert "stopped at bad image 1" in ssr("align", *made, *SMALL, code=1).err
    ran = ssr("align", *made, *SMALL, "--max-failures", 1, code=3)
    assert "1 bad images left out" in ran.err
    assert re.search(r"cmpa +│ 4/5 +│ done, 1 bad ", ssr("status", "--work", tmp_path / "new").out)


@pytest.mark.parametrize("dataset", ["tiny_folder", "tiny_coco"])
def test_other_datasets_go_the_same_way(dataset, request, ssr, tmp_path):
    found, work = request.getfixturevalue(dataset), tmp_path / "work"
    for words in (["superpixels"], ["align", *SMALL], ["cams", "--ckpt", "auto"], ["refine"]):
        ssr(*words, "--config", found.config, "--work", work)
    assert {path.stem for path in (work / "masks").glob("*.png")} == set(found.ids)
