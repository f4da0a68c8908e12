"""``ssr show features`` from the command line, and ``ssr show`` beside it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image


@pytest.fixture(scope="module")
def aligned(ssr, tiny_voc, finished, tmp_path_factory) -> Path:
    """A finished work directory with heads, over photos without any ground truth; copy before changing."""
    folder = tmp_path_factory.mktemp("aligned")
    root = folder / "VOC2012"
    shutil.copytree(tiny_voc.root, root, ignore=shutil.ignore_patterns("SegmentationClass*"))
    work = folder / "work"
    small = ("--tokens", 16, "--hidden", 8, "--epochs", 2, "--min-iterations", 0, "--batch", 4)
    ssr("superpixels", "--config", tiny_voc.config, "--root", root, "--work", work)
    ssr("align", "--config", tiny_voc.config, "--root", root, "--work", work, *small)
    return work


@pytest.mark.parametrize("projection", ["tsne", "pca"])
def test_map_and_numbers(ssr, aligned, tmp_path, projection):
    work = Path(shutil.copytree(aligned, tmp_path / "work"))
    ran = ssr("show", "features", "--work", work, "--projection", projection)
    with Image.open(work / "show/features.png") as picture:
        assert picture.format == "PNG"
        assert picture.width > 1000
    numbers = json.loads((work / "show/features.json").read_text())
    assert (numbers["projection"], numbers["samples"]) == (projection, 8)
    assert "8 samples (image, class) of 5 images" in ran.out
    for side in ("before", "after"):
        (line,) = [line for line in ran.out.splitlines() if f" {side} " in line]
        for shown in (
            f"{100 * numbers[side]['purity']:.1f} %",
            f"{numbers[side]['within']:.3f}",
            f"{numbers[side]['between']:.3f}",
        ):
            assert shown in line
    assert str(work / "show/features.png") in ran.out


def test_photos_left_out_are_told(ssr, aligned, tmp_path):
    work = Path(shutil.copytree(aligned, tmp_path / "work"))
    labels = tmp_path / "labels.csv"
    rows = {"a_cat": "dog", "b_trio": "bird;dog;person", "c_bird": "bird", "e_pair": "cat;dog", "f_car": "car"}
    labels.write_text("image,labels\n" + "".join(f"{image_id},{names}\n" for image_id, names in rows.items()) + "d_empty,\n")
    ran = ssr("show", "features", "--work", work, "--labels", labels, "--projection", "pca")
    assert "1 images left out" in ran.err


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["features"], 1, "no cmpa.safetensors in"),
        (["features", "--projection", "umap"], 2, "umap"),
        (["feature"], 2, "nothing called 'feature' to show"),
        (["feature", "voc"], 2, "nothing called 'feature' to show"),
    ],
)
def test_refusals_are_one_line(ssr, finished, words, code, said):
    work = finished["ssr"]
    before = sorted(path for path in work.rglob("*"))
    ran = ssr("show", *words, "--work", work, code=code)
    assert said in ran.err
    assert "Traceback" not in ran.text
    if code == 1:
        assert len(ran.err.splitlines()) == 1
        assert "run `ssr align --work " in ran.err
    assert sorted(path for path in work.rglob("*")) == before


@pytest.mark.parametrize("words", [[], ["panels"], ["voc"], ["panels", "voc"]])
def test_panels_are_what_show_draws(ssr, finished, tmp_path, words):
    work = Path(shutil.copytree(finished["ssr"], tmp_path / "work"))
    ran = ssr("show", *words, "--work", work, "--count", 1)
    assert "1 panels, contact sheet" in ran.out
    assert not (work / "show/features.png").exists()
