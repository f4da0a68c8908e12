"""``ssr predict`` as a person types it: with a work directory, and without any."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image


@pytest.fixture
def work(tiny_voc, write_model, ssr, tmp_path) -> Path:
    """A work directory that remembers the tiny VOC and has a model."""
    work = tmp_path / "runs/voc"
    ssr("superpixels", "--config", tiny_voc.config, "--work", work)
    write_model(work / "model.safetensors")
    return work


ONE = ("--scales", 1, "--no-flip")


def clip(models) -> tuple[object, ...]:
    return ("--clip-model", "tiny-quickgelu", "--clip-pretrained", models.visual, "--precision", "fp32")


def test_split_is_predicted_and_scored_as_the_last_line_says(work, ssr, tmp_path):
    memory = (work / "work.json").read_bytes()
    ran = ssr("predict", "--split", "val", "--work", work)
    folder = work / "predictions/val"
    assert f"2 label maps in {folder}\n" in ran.out
    assert f"next: ssr eval predictions --split val --work {work}\n" in ran.out
    assert "predict: 2 images" in ran.err
    assert (work / "work.json").read_bytes() == memory
    said = ssr("eval", "predictions", "--split", "val", "--work", work, "--no-pictures").out
    assert "supervision" not in said
    assert "boundary refinement none" in said
    report = json.loads((work / "eval/predictions-val/report.json").read_text())
    assert (report["images"], report["split"], report["boundary"]) == (2, "val", "none")
    digest = json.loads((work / "predictions/val.json").read_text())["options_digest"]
    assert report["options_digest"] == digest
    assert "2 already done" in ssr("predict", "--split", "val", "--work", work).err


def test_masks_are_made_again_as_the_last_line_says(finished, write_model, ssr, tmp_path):
    work = Path(shutil.copytree(finished["ssr"], tmp_path / "runs/voc"))
    write_model(work / "model.safetensors")
    said = ssr("predict", "--probabilities", *ONE, "--work", work).out
    line = next(line for line in said.splitlines() if line.startswith("next: "))
    assert line == f"next: ssr refine --probabilities auto --boundary none --force --work {work}"
    refined = (work / "refined.h5").read_bytes()
    assert f"next: ssr eval --work {work}" in ssr(*line.split()[2:]).out
    assert (work / "refined.h5").read_bytes() == refined
    assert "probabilities" in json.loads((work / "masks.json").read_text())["settings"]
    other = ssr("predict", "--probabilities", *ONE, "--split", "val", "--work", work).out
    assert "next: ssr eval predictions --split val" in other  # there are no masks of these images
    assert (
        "next: ssr eval predictions --split train" in ssr("predict", "--probabilities", *ONE, "--work", work).out
    )  # they hold them
    ssr("refine", "--force", "--background-power", 2, "--work", work)
    assert (
        "next: ssr eval predictions --split train" in ssr("predict", "--probabilities", *ONE, "--work", work).out
    )  # a flag more


def test_scores_of_older_masks_are_not_shown(finished, ssr, tmp_path):
    work = Path(shutil.copytree(finished["ssr"], tmp_path / "work"))
    for what in ("masks", "cams"):
        ssr("eval", what, "--work", work, "--no-pictures")
    assert "mIoU" in (said := ssr("status", "--work", work).out)
    score = f"{json.loads((work / 'eval/masks/report.json').read_text())['miou'] * 100:.2f}"
    assert score in said
    ssr("report", "--work", work)
    ssr("refine", "--force", "--background-power", 9, "--work", work)
    said = ssr("status", "--work", work).out
    assert f"next: ssr eval --work {work}" in said
    assert score not in said
    assert "the scores of masks are left out, since it was made again" in " ".join(ssr("report", "--work", work).err.split())
    page = (work / "report.html").read_text()
    assert "masks · split train" not in page
    assert "cams · split train" in page


def test_without_ground_truth_there_is_nothing_to_score(tiny_voc, write_model, ssr, tmp_path):
    root = Path(shutil.copytree(tiny_voc.root, tmp_path / "VOC2012", ignore=shutil.ignore_patterns("SegmentationClass")))
    model = write_model(tmp_path / "m.safetensors")
    ran = ssr("predict", "--config", tiny_voc.config, "--root", root, "--work", tmp_path / "w", "--model", model)
    assert "6 label maps" in ran.out
    assert "next:" not in ran.out


def test_photos_model_and_output_are_enough(tiny_voc, models, write_model, ssr, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_voc.root / "JPEGImages", "photos")
    write_model(Path("m.safetensors"))
    words = ("predict", "--images", "photos", "--model", "m.safetensors", "--output", "out", *clip(models))
    ran = ssr(*words)
    assert "6 label maps in out\n" in ran.out
    assert "next:" not in ran.out
    assert {path.stem for path in Path("out").glob("*.png")} == set(tiny_voc.ids)
    made = {path.name for path in Path().iterdir() if not path.name.startswith(".")}
    assert made == {"photos", "m.safetensors", "out", "out.json"}
    assert "6 already done" in ssr(*words).err
    Path("photos/b_trio.jpg").write_bytes(b"")
    Path("out/b_trio.png").unlink()
    ran = ssr(*words, "--max-failures", 1, code=3)
    assert "1 bad images left out, listed in failures.jsonl" in ran.err
    assert "5 label maps in out\n" in ran.out
    assert ssr(*words, code=1).err.count("error: ") == 1


def test_a_photo_that_is_too_large_is_its_own_failure(work, ssr, monkeypatch):
    from pipelines.method.predictor import Predictor

    logits = Predictor.logits

    def short_of_memory(self, photos):
        if any(photo.sample.image_id == "c_bird" for photo in photos):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 31.20 GiB")
        return logits(self, photos)

    monkeypatch.setattr(Predictor, "logits", short_of_memory)
    ran = ssr("predict", "--work", work, "--batch-size", 3, "--max-failures", 1, code=3)
    assert "5 label maps" in ran.out
    (line,) = (work / "failures.jsonl").read_text().splitlines()
    assert json.loads(line)["image"] == "c_bird"
    assert "patches needs more memory than there is" in line


@pytest.mark.parametrize("left_out", ["--model", "--output"])
def test_otherwise_a_work_directory_is_asked_for(models, ssr, tmp_path, monkeypatch, left_out):
    monkeypatch.chdir(tmp_path)
    words = {"--images": ".", "--model": "m.safetensors", "--output": "out"}
    del words[left_out]
    ran = ssr("predict", *(word for pair in words.items() for word in pair), *clip(models), code=2)
    assert "which work directory? there is none under runs/" in ran.err


def test_photos_go_below_the_work_directory(work, tiny_voc, ssr, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # runs/voc is the only one: found
    memory = (work / "work.json").read_bytes()
    shutil.copytree(tiny_voc.root / "JPEGImages", tmp_path / "my photos")
    ran = ssr("predict", "--images", "my photos")
    assert "6 label maps in runs/voc/predictions/my photos\n" in ran.out
    assert (work / "work.json").read_bytes() == memory


def test_photos_that_were_replaced_are_predicted_again_and_trainings_name_them(
    ssr, tiny_voc, write_model, tmp_path, monkeypatch
):
    (tmp_path / "val").mkdir()  # a folder of a split's name, which holds none of its photos
    monkeypatch.chdir(tmp_path)
    root = Path(shutil.copytree(tiny_voc.root, tmp_path / "voc"))
    work, photos = tmp_path / "work", root / "JPEGImages"
    made = ("--config", tiny_voc.config, "--root", root, "--work", work)
    align = ("align", "--iterations", 4, "--tokens", 8, "--hidden", 8, "--batch", 2)
    ssr("superpixels", *made)
    ssr(*align, *made)
    write_model(work / "model.safetensors")
    for source in (("--split", "val"), ("--images", photos)):
        ssr("predict", *source, "--work", work)
    said = ssr("status", "--work", work).out
    assert "out of date" not in said
    assert "were replaced" not in said
    before = {path: path.read_bytes() for path in work.glob("predictions/*/*.png")}
    for name in ("e_pair", "f_car"):  # touched alone, and another picture
        os.utime(photos / f"{name}.jpg")
    Image.open(photos / "f_car.jpg").rotate(180).save(photos / "f_car.jpg")
    said = ssr("status", "--work", work).out
    for line in (
        "predictions/val: 1 images out of date, with another photo: f_car",
        "predictions/JPEGImages: 1 images out of date, with another photo: f_car",
        "cmpa: 1 photos were replaced after the training was begun, which `ssr align --force` trains anew: f_car",
    ):
        assert line in " ".join(said.split())
    ssr("superpixels", *made)
    assert f"next: ssr predict --images {photos} --work {work}" in ssr("status", "--work", work).out
    for source, there in ((("--split", "val"), 1), (("--images", photos), 5)):
        assert f"{there} already done" in ssr("predict", *source, "--work", work).err
    after = {path: path.read_bytes() for path in work.glob("predictions/*/*.png")}
    assert {path.stem for path in after if after[path] != before[path]} == {"f_car"}
    replaced = "1 images were replaced after this training was begun: f_car; --force trains anew"
    assert replaced in ssr(*align, *made).err
    assert "were replaced" not in ssr(*align, *made, "--force").err
    said = ssr("status", "--work", work).out
    assert "out of date" not in said
    assert "were replaced" not in said


def test_force_and_every_flag(work, ssr):
    ssr("predict", "--work", work)
    flags = ("--scales", 1, "--no-flip", "--long-side", 32, "--probabilities", "--batch-size", 2)
    assert "scales: " in ssr("predict", "--work", work, *flags, code=2).err
    assert "already done" not in ssr("predict", "--work", work, *flags, "--force").err
    assert (work / "predictions/train.h5").is_file()
    settings = json.loads((work / "predictions/train.json").read_text())["settings"]
    assert (settings["scales"], settings["flip"], settings["long_side"], settings["boundary"]) == ([1.0], False, 32, "none")


@pytest.mark.parametrize("name", ["crf", "par"])
def test_boundary_refinement_in_workers(work, ssr, name):
    if name == "crf":
        pytest.importorskip("pydensecrf")
    ssr("predict", "--split", "val", "--work", work, "--boundary", name, "--workers", 1)
    folder = work / "predictions/val"
    assert len(list(folder.glob("*.png"))) == 2
    assert f"boundary refinement {name}" in ssr("eval", folder, "--split", "val", "--work", work, "--no-pictures").out


def test_upper_bound_is_called_so_wherever_it_is_scored(work, ssr, write_model):
    write_model(work / "model.safetensors", supervision="masks")
    assert "an upper bound, not a weakly supervised result" in ssr("predict", "--split", "val", "--work", work).err
    said = ssr("eval", work / "predictions/val", "--split", "val", "--work", work).out
    assert said.count("ground-truth masks (upper bound)") == 2  # caption and rules
    assert "supervision: ground-truth masks (upper bound)" in said
    report = json.loads((work / "eval/predictions-val/report.json").read_text())
    assert report["rules"]["supervision"] == "ground-truth masks (upper bound)"


def test_flags_of_tags_are_refused_with_a_model(work, ssr):
    said = ssr("predict", "--split", "val", "--work", work, "--tag-thresholds", "nowhere.json", code=2).err
    assert "--tag-thresholds: a trained model needs no tags" in said
