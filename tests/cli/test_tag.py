"""``ssr tag``: a label file from class names, resumed, shared out, calibrated, and called by its name by all that follows."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from pipelines import PseudoLabeler
from pipelines.datasets.classes import VOC12
from pipelines.datasets.label_files import holds_tags, read_label_file
from pipelines.stages.status import status
from pipelines.stores.array_store import iter_records
from tests.fixtures.datasets import PHOTOS

CLASSES = "[[classes]]\nname = 'cat'\n[[classes]]\nname = 'dog'\n"


def tags_of(work: Path) -> dict[str, str]:
    with (work / "tags.csv").open(encoding="utf-8") as file:
        return {row["image"]: row["tags"] for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def tagged(ssr, tiny_voc, tmp_path_factory):
    """A work directory with tags of plain thresholds. Copy before changing."""
    work = tmp_path_factory.mktemp("tagged") / "work"
    ssr("tag", "--config", tiny_voc.config, "--work", work, "--tag-threshold", 0.1)
    return work


def test_tags_are_the_classes_whose_scores_reach_the_threshold(tagged):
    scores = {image_id: scores for image_id, (scores, _) in iter_records(tagged / "tag_scores.h5")}
    assert scores.keys() == set(PHOTOS)
    expected = {i: ";".join(np.array(VOC12.names)[s >= 0.1]) for i, s in scores.items()}
    assert tags_of(tagged) == expected
    assert len(set(expected.values())) > 1
    assert holds_tags(tagged / "tags.csv")
    assert json.loads((tagged / "thresholds.json").read_text())["source"] == "--tag-threshold"


def test_another_threshold_needs_no_encoder_and_what_is_missing_is_made_again(tagged, ssr, tiny_voc, tmp_path):
    work = Path(shutil.copytree(tagged, tmp_path / "work"))
    ran = ssr("tag", "--work", work, "--tag-threshold", 1)
    assert "6 already done" in ran.err
    assert "0 tags of 6 images, 6 without any" in ran.out
    assert f"next: ssr masks --labels {work}/tags.csv --work {work}" in ran.out
    assert "best_share: " in ssr("tag", "--work", work, "--best-share", 0.5, code=2).err
    shutil.copy(tiny_voc.root / "ImageSets/Segmentation/val.txt", tmp_path / "two.txt")
    ssr(
        "tag",
        "--config",
        tiny_voc.config,
        "--work",
        tmp_path / "other",
        "--tag-threshold",
        0.1,
        "--split",
        tmp_path / "two.txt",
    )
    ran = ssr("tag", "--work", tmp_path / "other", "--tag-threshold", 0.1, "--split", "train")
    assert ", 2 already done" in ran.err
    assert tags_of(tmp_path / "other") == tags_of(tagged)
    assert (tmp_path / "other/tag_scores.h5").read_bytes() == (tagged / "tag_scores.h5").read_bytes()


def test_shards_are_the_whole(tagged, ssr, tiny_voc, tmp_path):
    for index in range(2):
        ran = ssr("tag", "--config", tiny_voc.config, "--work", tmp_path, "--tag-threshold", 0.1, "--shard", f"{index}/2")
    assert not (tmp_path / "tags.csv").exists()
    ssr("merge", "--work", tmp_path)
    assert (tmp_path / "tag_scores.h5").read_bytes() == (tagged / "tag_scores.h5").read_bytes()
    ran = ssr("tag", "--work", tmp_path, "--tag-threshold", 0.1)
    assert "6 already done" in ran.err
    assert tags_of(tmp_path) == tags_of(tagged)


def test_folder_without_labels_and_a_calibration_by_some(tiny_folder, ssr, tmp_path):
    (tmp_path / "classes.toml").write_text(CLASSES)
    (tmp_path / "some.csv").write_text("image,labels\none,cat\ntwo,cat;dog\nelsewhere,dog\n")
    root = Path(shutil.copytree(tiny_folder.root, tmp_path / "photos"))
    (root / "labels.csv").unlink()
    words = ("--config", root / "tiny.toml", "--classes", tmp_path / "classes.toml", "--work", tmp_path / "w")
    ran = ssr("tag", *words)
    assert "(default)" in ran.out
    assert "expected" not in ran.out
    following = ran.out.split("next: ")[1]
    assert following.startswith(f"ssr masks --labels {tmp_path / 'w' / 'tags.csv'}")
    assert ssr("status", "--work", tmp_path / "w").out.endswith(f"next: {following}")
    ran = ssr("tag", *words, "--labels", tmp_path / "some.csv", "--class-thresholds")
    assert "(labels)" in ran.out
    assert "expected of further images, by the labels of 2: precision" in ran.out
    assert len(tags_of(tmp_path / "w")) == 3
    found = json.loads((tmp_path / "w/thresholds.json").read_text())
    assert (found["labelled"], found["classes"].keys(), found["tagger"]) == (2, {"cat", "dog"}, "dense")
    again = ssr("tag", *words, "--tag-thresholds", tmp_path / "w/thresholds.json")
    assert f"({tmp_path / 'w/thresholds.json'})" in again.out
    own = ssr("tag", *words, "--labels", tmp_path / "w/tags.csv")
    assert "(default)" in own.out  # tags say nothing of tags


def test_what_follows_says_that_labels_are_tags(tagged, ssr, tiny_voc, tmp_path):
    work = Path(shutil.copytree(tagged, tmp_path / "work"))
    tags = read_label_file(work / "tags.csv", VOC12)
    assert any(tags.values())
    ran = ssr("masks", "--labels", work / "tags.csv", "--work", work)
    assert "tags.csv: labels are tags, which `ssr tag` gave by the class names" in ran.err
    for name in ("cams", "refined", "masks"):
        assert json.loads((work / f"{name}.json").read_text())["dataset"]["labels"] == "tags"
    said = ssr("eval", "--work", work, "--no-pictures").out
    assert "supervision: tags of class names, no labels of these images" in said
    ssr("masks", "--config", tiny_voc.config, "--work", tmp_path / "true")
    assert "labels" not in json.loads((tmp_path / "true/masks.json").read_text())["dataset"]
    assert "supervision" not in ssr("eval", "--work", tmp_path / "true", "--no-pictures").out


@pytest.mark.parametrize("heads", [False, True], ids=["plain", "heads"])
def test_label_free_prediction_is_tagging_and_masks_to_the_byte(heads, tiny_voc, models, with_heads, ssr, tmp_path):
    """Also from Python, without labels."""
    work, ckpt = tmp_path / "work", with_heads / "cmpa.safetensors"
    words, more = ("--config", tiny_voc.config, "--work", work), ("--ckpt", ckpt) if heads else ()
    threshold = ("--tag-threshold", 0.06)
    ssr("tag", *words, *threshold, *more)
    ssr("masks", *words, *more, "--labels", work / "tags.csv")
    masks = {path.name: path.read_bytes() for path in (work / "masks").glob("*.png")}
    assert len(masks) == len(PHOTOS)
    assert len({len(tags.split(";")) for tags in tags_of(work).values()}) > 1
    ran = ssr("predict", *words, *threshold, "--model", ckpt if heads else "tags")
    folder = work / "predictions/train_tags"
    assert f"6 label maps in {folder}\nnext: ssr eval {folder} --split train" in ran.out
    assert {path.name: path.read_bytes() for path in folder.glob("*.png")} == masks
    (folder / "b_trio.png").unlink()
    assert ", 5 already done" in ssr("predict", *words, *threshold, "--model", ckpt if heads else "tags").err
    assert (folder / "b_trio.png").read_bytes() == masks["b_trio.png"]
    assert "tag.thresholds: " in ssr("predict", *words, "--model", ckpt if heads else "tags", code=2).err
    assert "supervision: tags of class names" in ssr("eval", folder, *words, "--no-pictures").out
    assert status(work).outputs[-1].made_by == f"ssr predict --split train --model {'heads' if heads else 'tags'}"
    labeler = PseudoLabeler.from_config(
        tiny_voc.config, alignment=ckpt if heads else None, tag={"tag_threshold": 0.06}, device="cpu"
    )
    for image_id in PHOTOS:
        result = labeler(tiny_voc.root / f"JPEGImages/{image_id}.jpg")
        assert ";".join(result.classes) == tags_of(work)[image_id]
        result.save(tmp_path / "mask.png")
        assert (tmp_path / "mask.png").read_bytes() == masks[f"{image_id}.png"]


def test_label_free_prediction_of_any_folder_and_what_it_refuses(tagged, tiny_voc, models, ssr, tmp_path):
    photos = Path(shutil.copytree(tiny_voc.root / "JPEGImages", tmp_path / "my photos"))
    words = ("--model", "tags", "--images", photos, "--work", Path(shutil.copytree(tagged, tmp_path / "work")))
    ran = ssr("predict", *words, "--scales", 1.5, "--no-flip", "--long-side", 48, "--boundary", "par")
    assert f"6 label maps in {tmp_path / 'work' / 'predictions' / 'my photos_tags'}\n" in ran.out
    settings = json.loads((tmp_path / "work/predictions/my photos_tags.json").read_text())["settings"]
    assert (settings["cams"]["scales"], settings["cams"]["long_side"], settings["boundary"]) == ([1.5], 48, "par")
    assert "--probabilities: only a trained model has them" in ssr("predict", *words, "--probabilities", code=2).err
    assert "no checkpoint at" in ssr("predict", *words, "--model", "heads", code=2).err


BAD = {
    "no class list": (("--config", "FOLDER"), "expected the names to tag images with, found no class list (--classes FILE"),
    "no photos": (("--config", "FOLDER", "--root", "EMPTY", "--classes", "CLASSES"), "expected images, found none (--root"),
    "labels of other photos": (("--config", "VOC", "--labels", "OTHERS"), "has a label of none of the images that were tagged"),
    "unknown class": (("--config", "VOC", "--labels", "UNKNOWN"), "unicorn"),
    "thresholds of nothing": (("--config", "VOC", "--tag-thresholds", "CLASSES"), "is not valid JSON"),
    "thresholds of other classes": (("--config", "VOC", "--tag-thresholds", "TWO"), "expected thresholds for 20 classes"),
    "thresholds as a list": (("--config", "VOC", "--tag-thresholds", "LIST"), "expected the thresholds.json of `ssr tag`"),
    "thresholds of another tagger": (("--config", "VOC", "--tag-thresholds", "CLS"), "expected thresholds of tagger dense"),
    "heads that are not there": (("--config", "VOC", "--tagger", "heads"), "reads alignment heads, found none (--ckpt FILE"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line(name, tagged, tiny_folder, tiny_voc, ssr, tmp_path):
    (tmp_path / "empty").mkdir()
    files = {
        "classes.toml": CLASSES,
        "others.csv": "image,labels\nelsewhere,cat\n",
        "unknown.csv": "image,labels\na_cat,unicorn\n",
    }
    files |= {"list.json": "[1, 2]"}
    files |= {"two.json": '{"tagger": "dense", "classes": {"cat": 0.5}}'}
    files |= {"cls.json": json.dumps({"tagger": "cls", "classes": dict.fromkeys(VOC12.names, 0.5)})}
    for file, text in files.items():
        (tmp_path / file).write_text(text)
    places = {"FOLDER": tiny_folder.config, "VOC": tiny_voc.config, "EMPTY": tmp_path / "empty"}
    places |= {Path(file).stem.upper(): tmp_path / file for file in files}
    work = (
        Path(shutil.copytree(tagged, tmp_path / "work")) if places["VOC"] in map(places.get, BAD[name][0]) else tmp_path / "w"
    )
    ran = ssr("tag", *(places.get(word, word) for word in BAD[name][0]), "--work", work, code=2)
    assert BAD[name][1] in ran.err
    assert ran.err.count("error: ") == 1
