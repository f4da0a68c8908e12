"""``ssr labels`` and ``ssr text``: what other stages read, from every source."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pipelines.datasets.classes import COCO14, VOC12
from pipelines.encoders.text import read_bank
from pipelines.stores.array_store import iter_records

VOC = {
    "a_cat": ["cat"], "b_trio": ["bird", "dog", "person"], "c_bird": ["bird"], "d_empty": [], "e_pair": ["cat", "dog"],
    "f_car": ["car"],
}  # fmt: skip


@pytest.mark.parametrize(("kind", "folder"), [("xml", "Annotations"), ("masks", "SegmentationClass")])
def test_every_source_gives_the_same_labels(ssr, tiny_voc, tmp_path, kind, folder):
    target = tmp_path / "out.json"
    ran = ssr("labels", tiny_voc.root / folder, target, "--from", kind)
    assert json.loads(target.read_text()) == VOC
    assert "6 images, 8 labels, 5 classes" in ran.out
    assert ("reads ground-truth masks" in ran.err) == (kind == "masks")


def test_coco_source(ssr, tiny_coco, tmp_path):
    source = tiny_coco.root / "annotations/instances_train2014.json"
    ssr("labels", source, tmp_path / "out.jsonl", "--from", "coco", "--classes", "coco14")
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert {row["image"][-1]: row["labels"] for row in rows} == {"1": ["person", "dog"], "2": ["car"], "3": []}


def test_only_the_ids_asked_for_in_their_order(ssr, tiny_voc, tmp_path):
    (tmp_path / "ids.txt").write_text("f_car\na_cat\n")
    source = tiny_voc.root / "Annotations"
    ssr("labels", source, tmp_path / "out.csv", "--from", "xml", "--images", tmp_path / "ids.txt")
    assert (tmp_path / "out.csv").read_text() == "image,labels\nf_car,car\na_cat,cat\n"


def test_written_labels_are_read_by_the_stages(ssr, tiny_voc, tmp_path):
    ssr("labels", tiny_voc.root / "Annotations", tmp_path / "out.csv", "--from", "xml")
    made = ("--config", tiny_voc.config, "--recipe", "clip-es")
    ssr("cams", *made, "--work", tmp_path / "a")
    ssr("cams", *made, "--work", tmp_path / "b", "--labels", tmp_path / "out.csv")
    assert (tmp_path / "a/cams.h5").read_bytes() == (tmp_path / "b/cams.h5").read_bytes()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["none.csv", "out.csv", "--from", "csv"], "none.csv"),
        (["none", "out.csv", "--from", "xml"], "expected a folder of XML"),
        (["labels.csv", "out.xls", "--from", "csv"], "out.xls"),
        (["labels.csv", "out.csv", "--from", "csv", "--classes", "voc13"], "voc13"),
        (["bad.csv", "out.csv", "--from", "csv"], "unknown class 'catt'"),
        (["evil.npy", "out.csv", "--from", "npy"], "evil.npy"),
    ],
)
def test_mistakes_are_one_line(ssr, tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "labels.csv").write_text("image,labels\na,cat\n")
    (tmp_path / "bad.csv").write_text("image,labels\na,catt\n")
    np.save(tmp_path / "evil.npy", {"a": pytest.approx}, allow_pickle=True)
    ran = ssr("labels", *words, code=None)
    assert ran.code in {1, 2}
    assert said in ran.err
    assert ran.err.count("\n") == 1
    assert not (tmp_path / "out.csv").exists()


def test_text_writes_banks_that_cams_can_use(ssr, tiny_voc, models, tmp_path):
    bank = tmp_path / "bank.safetensors"
    ran = ssr("text", bank, "--config", tiny_voc.config, "--clip-pretrained", models.full, "--work", tmp_path / "w")
    background = tmp_path / "bank-background.safetensors"
    assert read_bank(bank).names == VOC12.names
    assert read_bank(background).names == VOC12.background
    assert "next: ssr cams " in ran.out
    assert f" --text-bank {bank} --background-bank {background}" in ran.out
    made = ("--config", tiny_voc.config, "--recipe", "clip-es", "--clip-pretrained", models.full)
    ssr("cams", *made, "--work", tmp_path / "banks", "--text-bank", bank, "--background-bank", background)
    plain = tmp_path / "plain.toml"
    plain.write_text(f'[dataset]\nroot = "{tiny_voc.root}"\n[clip]\nmodel = "tiny-quickgelu"\npretrained = "{models.full}"\n')
    ssr("cams", "--config", plain, "--recipe", "clip-es", "--work", tmp_path / "tower", "--precision", "fp32")
    for (a, (banks, _)), (b, (tower, _)) in zip(
        *(iter_records(tmp_path / f"{w}/cams.h5") for w in ("banks", "tower")), strict=True
    ):
        assert a == b
        np.testing.assert_allclose(banks, tower, atol=2e-3)


def test_text_of_coco_and_without_text_tower(ssr, tiny_coco, models, tmp_path):
    bank = tmp_path / "coco.safetensors"
    ssr("text", bank, "coco", "--config", tiny_coco.config, "--clip-pretrained", models.full, "--work", tmp_path / "w")
    assert read_bank(bank).names == COCO14.names
    ran = ssr("text", tmp_path / "b.safetensors", "coco", "--config", tiny_coco.config, "--work", tmp_path / "w", code=2)
    assert "image tower alone" in ran.err
    assert not (tmp_path / "b.safetensors").exists()


def test_class_list_of_the_config(ssr, tiny_folder, tmp_path):
    made = (tiny_folder.root / "labels.csv", tmp_path / "labels.json", "--from", "csv")
    ssr("labels", *made, "--config", tiny_folder.config)
    assert len(json.loads((tmp_path / "labels.json").read_text())) == len(tiny_folder.ids)
