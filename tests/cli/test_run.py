"""The way through as a person types it: four commands, pictures, and running them again."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.datasets.classes import palette
from pipelines.stores.array_store import ArrayReader

KEYS = {
    "miou", "per_class_iou", "precision", "recall", "confusion_ratio", "pixel_accuracy", "images", "split", "rules",
    "options_digest",
}  # fmt: skip
STORES = ("superpixels.h5", "cams.h5", "refined.h5")


def contents(work: Path) -> dict[str, bytes]:
    """Every output that counts, byte by byte."""
    files = [work / name for name in STORES if (work / name).is_file()] + sorted((work / "masks").glob("*.png"))
    return {str(path.relative_to(work)): path.read_bytes() for path in files}


@pytest.fixture
def work(finished, tmp_path) -> Path:
    """A finished work directory of the ssr recipe, to be changed."""
    return Path(shutil.copytree(finished["ssr"], tmp_path / "work"))


@pytest.mark.parametrize("recipe", ["ssr", "clip-es"])
def test_stages_leave_their_outputs(finished, tiny_voc, recipe):
    work = finished[recipe]
    for store in STORES[recipe == "clip-es" :]:
        with ArrayReader(work / store) as reader:
            assert reader.ids() == sorted(tiny_voc.ids)
        assert json.loads((work / store).with_suffix(".json").read_text())["complete"] is True
    assert {path.stem for path in (work / "masks").glob("*.png")} == set(tiny_voc.ids)
    for path in (work / "masks").glob("*.png"):
        with Image.open(path) as mask, Image.open(tiny_voc.root / f"JPEGImages/{path.stem}.jpg") as photo:
            assert (mask.mode, mask.size) == ("P", photo.size)
            assert np.array_equal(np.array(mask.getpalette()), palette().ravel())
    assert not list(work.rglob("*.tmp"))


def test_masks_hold_only_the_images_own_classes(finished):
    of = {"a_cat": {0, 8}, "b_trio": {0, 12, 15, 3}, "c_bird": {0, 3}, "d_empty": {0}, "e_pair": {0, 8, 12}, "f_car": {0, 7}}
    for image_id, allowed in of.items():
        with Image.open(finished["ssr"] / f"masks/{image_id}.png") as mask:
            assert set(np.unique(np.asarray(mask)).tolist()) <= allowed


@pytest.mark.parametrize("recipe", ["ssr", "clip-es"])
def test_eval_show_and_status(finished, ssr, tiny_voc, tmp_path, recipe):
    work = Path(shutil.copytree(finished[recipe], tmp_path / "work"))
    ran = ssr("eval", "--work", work)
    report = json.loads((work / "eval/masks/report.json").read_text())
    assert report.keys() >= KEYS
    assert (report["images"], report["split"], report["boundary"]) == (6, "train", "none")
    assert all(0 <= report[key] <= 1 for key in ("miou", "precision", "recall", "pixel_accuracy"))
    assert set(report["per_class_iou"]) == {"background", *(n for n in report["per_class_iou"] if n != "background")}
    assert len(report["per_class_iou"]) == 21
    assert f"mIoU {100 * report['miou']:.2f}" in ran.out
    for said in ("split train", "6 images", "boundary refinement none", report["options_digest"], "next: ssr report --work"):
        assert said in ran.out
    for picture in ("confusion.png", "per_class_iou.png"):
        Image.open(work / "eval/masks" / picture).verify()
    assert (work / "eval/masks/per_class.csv").read_text().startswith("class,iou,precision,recall,pixels\nbackground,")

    assert f"next: ssr report --work {work}" in ssr("status", "--work", work).out
    ssr("show", "--work", work, "--count", 2)
    page = (work / "show/index.html").read_text()
    assert "data:image/jpeg;base64," in page
    assert not re.search(r"(?:src|href)=(?![\"']?(?:data:|#))", page)
    assert not re.search(r"url\((?!\s*[\"']?data:)|@import", page)
    assert "not opened" in page
    Image.open(work / "show/contact_sheet.png").verify()
    assert len(list((work / "show").glob("*.png"))) == 3


def test_miou_is_that_of_a_slow_twin(finished, ssr, tiny_voc, tmp_path):
    work = Path(shutil.copytree(finished["ssr"], tmp_path / "work"))
    ssr("eval", "--work", work, "--no-pictures")
    counts = np.zeros((21, 21), np.int64)
    for image_id in tiny_voc.ids:
        with Image.open(tiny_voc.root / f"SegmentationClass/{image_id}.png") as image:
            truth = np.asarray(image)
        with Image.open(work / f"masks/{image_id}.png") as image:
            found = np.asarray(image)
        for t, f in zip(truth.ravel().tolist(), found.ravel().tolist(), strict=True):
            if t != 255:
                counts[t, f] += 1
    hit = np.diag(counts)
    there = counts.sum(1) > 0
    expected = (hit / np.maximum(counts.sum(0) + counts.sum(1) - hit, 1))[there].mean()
    assert json.loads((work / "eval/masks/report.json").read_text())["miou"] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("stage", "then"), [("superpixels", "ssr cams"), ("cams", "ssr refine"), ("refine", "ssr eval")])
def test_second_run_skips_everything(work, ssr, tiny_voc, stage, then):
    before = contents(work)
    ran = ssr(stage, "--config", tiny_voc.config, "--work", work)
    assert ", 6 already done" in ran.err
    assert f"next: {then} --work {work}\n" in ran.out + ran.err
    assert contents(work) == before


@pytest.mark.parametrize("name", ["crf", "par"])
def test_boundary_refinement_later_redoes_masks_only(work, ssr, name):
    if name == "crf":
        pytest.importorskip("pydensecrf")
    before = contents(work)
    stamp = (work / "refined.h5").stat().st_mtime_ns
    flags = ("--work", work, "--boundary", name, "--workers", 1)
    assert f'boundary: "none" -> "{name}"' in ssr("refine", *flags, code=2).err
    ssr("refine", *flags, "--force")
    after = contents(work)
    assert after["refined.h5"] == before["refined.h5"]
    assert (work / "refined.h5").stat().st_mtime_ns == stamp
    assert after["masks/b_trio.png"] != before["masks/b_trio.png"]
    with Image.open(work / "masks/d_empty.png") as mask:
        assert not np.asarray(mask).any()
    ssr("eval", "--work", work, "--no-pictures")
    assert json.loads((work / "eval/masks/report.json").read_text())["boundary"] == name


@pytest.mark.parametrize("flags", [("--background-power", 2), ("--min-confidence", 0.6)])
def test_rules_after_propagation_redo_masks_only(work, ssr, tiny_voc, flags):
    before, stamp = contents(work), (work / "refined.h5").stat().st_mtime_ns
    ssr("refine", "--config", tiny_voc.config, "--work", work, *flags, "--force")
    assert (work / "refined.h5").stat().st_mtime_ns == stamp
    assert {name for name, content in contents(work).items() if content != before[name]} <= {
        f"masks/{image_id}.png" for image_id in tiny_voc.ids
    }
    assert contents(work) != before


def test_refused_command_does_not_change_what_is_remembered(work, ssr, tiny_voc):
    remembered = (work / "work.json").read_text()
    ssr("cams", "--config", tiny_voc.config, "--work", work, "--recipe", "clip-es", code=2)
    ssr("cams", "--work", work, "--clip-pretrained", "nowhere.safetensors", code=2)
    assert (work / "work.json").read_text() == remembered


def test_first_command_that_is_refused_leaves_no_memory(tiny_voc, ssr, tmp_path):
    ssr("cams", "--config", tiny_voc.config, "--work", tmp_path / "w", "--clip-pretrained", "nowhere.safetensors", code=2)
    assert not (tmp_path / "w/work.json").exists()


def test_work_directory_of_another_dataset_is_refused(work, ssr, tiny_coco):
    before = (work / "work.json").read_text()
    ran = ssr("superpixels", "--config", tiny_coco.config, "--work", work, code=2)
    assert "belongs to another dataset" in ran.err
    assert "--work" in ran.err
    assert (work / "work.json").read_text() == before


def test_moved_dataset_is_taken_and_other_images_are_made_anew(tiny_voc, make_voc, ssr, tmp_path):
    flags = ("--config", tiny_voc.config, "--work", tmp_path / "work")
    shutil.copytree(tiny_voc.root, tmp_path / "disk/VOC")
    ssr("superpixels", *flags, "--root", tmp_path / "disk/VOC")
    copy = ssr("superpixels", *flags, code=2).err
    assert "belongs to another dataset (root: " in copy
    (tmp_path / "disk").rename(tmp_path / "moved")
    assert "no JPEGImages in" in ssr("superpixels", "--work", tmp_path / "work", code=2).err
    assert ", 6 already done" in ssr("superpixels", "--work", tmp_path / "work", "--root", tmp_path / "moved/VOC").err
    assert ", 6 already done" in ssr("superpixels", "--work", tmp_path / "work").err
    shutil.rmtree(tmp_path / "moved")
    make_voc(tmp_path / "other", {"a_cat": ((48, 40), ("cat",))})
    other = ssr("superpixels", "--work", tmp_path / "work", "--root", tmp_path / "other").err
    assert "1/1" in other
    assert "already done" not in other


def test_eval_of_cams_and_its_oracle(work, ssr):
    ran = ssr("eval", "cams", "--oracle", "--work", work, "--no-pictures")
    fixed, oracle = (json.loads((work / f"eval/{name}/report.json").read_text()) for name in ("cams", "cams-oracle"))
    assert (fixed["oracle"], oracle["oracle"], fixed["background_power"]) == (False, True, 1.0)
    assert oracle["miou"] >= fixed["miou"]
    assert "ORACLE" in oracle["rules"]["background"]
    assert "ORACLE" not in fixed["rules"]["background"]
    assert ran.out.count("ORACLE") >= 2
    assert "ORACLE" in ssr("status", "--work", work).out
    assert "--oracle" in ssr("eval", "masks", "--oracle", "--work", work, code=2).err


def test_eval_of_a_folder_scores_it_like_masks(work, ssr, tmp_path, tiny_voc):
    shutil.copytree(work / "masks", tmp_path / "mine")
    ssr("eval", "--work", work, "--no-pictures")
    ssr("eval", tmp_path / "mine", "--work", work, "--no-pictures")
    a, b = (json.loads((work / f"eval/{name}/report.json").read_text()) for name in ("masks", "mine"))
    assert a["miou"] == b["miou"]
    shutil.copytree(tiny_voc.root / "SegmentationClass", tmp_path / "truth")
    ssr("eval", tmp_path / "truth", "--work", work, "--no-pictures")
    assert json.loads((work / "eval/truth/report.json").read_text())["miou"] == 1.0
    (tmp_path / "mine/c_bird.png").unlink()
    said = ssr("eval", tmp_path / "mine", "--work", work, code=1).err
    assert f"c_bird: nothing to score at {tmp_path / 'mine/c_bird.png'}" in said
    assert "ground-truth" not in said
    assert "1 images left out" in ssr("eval", tmp_path / "mine", "--work", work, "--max-failures", 1, code=3).err


def test_folder_called_masks_does_not_overwrite_the_own_report(work, ssr, tmp_path, tiny_voc):
    ssr("eval", "--work", work, "--no-pictures")
    own = (work / "eval/masks/report.json").read_text()
    shutil.copytree(tiny_voc.root / "SegmentationClass", tmp_path / "peer/masks")
    ssr("eval", tmp_path / "peer/masks", "--work", work, "--no-pictures")
    assert (work / "eval/masks/report.json").read_text() == own


def test_compare_shows_two_runs(finished, ssr, tmp_path):
    works = [Path(shutil.copytree(finished[recipe], tmp_path / recipe)) for recipe in ("ssr", "clip-es")]
    for work in works:
        ssr("eval", "--work", work, "--no-pictures")
    a, b = (json.loads((work / "eval/masks/report.json").read_text())["miou"] for work in works)
    out = ssr("eval", "--compare", *works).out
    row = next(line for line in out.splitlines() if "mIoU" in line and "│" in line)
    assert [f"{100 * a:.2f}", f"{100 * b:.2f}", f"{100 * (b - a):+.2f}"] == re.findall(r"[-+]?\d+\.\d+", row)
    assert "no report of masks at" in ssr("eval", "--compare", works[0], tmp_path, code=2).err
    assert f"no report of predictions at {works[0]}" in ssr("eval", "predictions", "--compare", *works, code=2).err
    assert "warning" not in out
    path = works[1] / "eval/masks/report.json"
    path.write_text(path.read_text().replace('"cat"', '"lynx"'))
    for given in (works, works[::-1]):
        out = ssr("eval", "--compare", *given).out
        assert "A and B differ in their classes or images" in out
        assert all(re.search(rf"│ {name} +│", out) for name in ("cat", "lynx"))
    split = works[0] / "eval/predictions-val"
    shutil.copytree(works[0] / "eval/masks", split)
    assert "mIoU" in ssr("eval", "predictions", "--compare", works[0], split).out
    shutil.copytree(split, works[0] / "eval/predictions-train")
    said = ssr("eval", "predictions", "--compare", works[0], split, code=2).err
    assert "several reports: predictions-train, predictions-val (ssr eval predictions-train --compare" in said
    assert "--background-power" in ssr("eval", "masks", "--background-power", 3, "--work", works[0], code=2).err


@pytest.mark.parametrize("dataset", ["tiny_folder", "tiny_coco"])
def test_other_datasets_go_all_the_way(request, ssr, tmp_path, dataset):
    data = request.getfixturevalue(dataset)
    work = tmp_path / "work"
    for stage in ("cams", "refine", "eval", "show", "status", "doctor"):
        config = ("--config", data.config) if stage in {"cams", "doctor"} else ()
        ssr(stage, *config, "--work", work, *(("--recipe", "clip-es") if stage == "cams" else ()))
    assert {path.stem for path in (work / "masks").glob("*.png")} == set(data.ids)
    assert json.loads((work / "eval/masks/report.json").read_text())["images"] == 3
