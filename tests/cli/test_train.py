"""``ssr train`` as a person types it: the way to a model, its messages and exit codes."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

SMALL = (
    "--iterations", 4, "--batch", 2, "--crop", 64, "--hidden", 16, "--decoder-layers", 1, "--decoder-heads", 2,
    "--par-iterations", 1, "--par-dilations", 1, "--par-dilations", 3, "--save-every", 2,
)  # fmt: skip
WECLIP = ("--recipe", "weclip", "--clip-layers", 3, "--filter-from", 2)


@pytest.fixture(scope="module")
def way(finished, tiny_voc, ssr, tmp_path_factory):
    """What each command said, in order, and the work directory after them. Copy before changing."""
    work = tmp_path_factory.mktemp("way") / "work"
    said = {}
    for name, words in {
        "superpixels": ["superpixels"],
        "align": ["align", "--iterations", 4, "--tokens", 8, "--hidden", 8, "--batch", 2],
        "train": ["train", *SMALL, "--ckpt", "auto", "--val-split", "val", "--validate-every", 2],
        "again": ["train", *SMALL, "--ckpt", "auto", "--val-split", "val", "--validate-every", 2],
        "predict": ["predict", "--split", "val"],
    }.items():
        said[name] = ssr(*words, "--config", tiny_voc.config, "--work", work)
    return work, said


@pytest.fixture
def work(way, tmp_path) -> Path:
    return Path(shutil.copytree(way[0], tmp_path / "work"))


def test_every_output_is_there(way, tiny_voc):
    work, _ = way
    assert json.loads((work / "model.json").read_text())["complete"] is True
    assert {path.name for path in (work / "train").iterdir() if path.name != ".lock"} == {
        "state.safetensors", "best.safetensors", "curves.jsonl", "curves.png", "photos.json"
    }  # fmt: skip
    assert {path.stem for path in (work / "predictions/val").glob("*.png")} == {"e_pair", "f_car"}


def test_what_it_says(way):
    work, said = way
    told = said["train"].err
    assert re.search(r"^train: 4 steps$", told, re.MULTILINE)
    assert re.search(r"^train: 4/4 in [\d.]+ s, [\d.]+ (steps/s|s/step)$", told, re.MULTILINE)
    assert re.search(r"^train 2: mIoU [\d.]+ on val \(one scale, no boundary refinement\), best so far$", told, re.MULTILINE)
    assert re.search(r"^train 4: cross-entropy [\d.]+, learning rate [\d.e-]+$", told, re.MULTILINE)
    assert re.search(r"\d+ s per 1,000 steps, [\d.]+ GiB", told)
    assert f"next: ssr predict --work {work}\n" in said["train"].out
    assert "nan" not in told
    assert "Warning" not in told
    assert "upper bound" not in told


def test_second_run_does_nothing(way):
    _, said = way
    assert "train: 4 steps, 4 already done" in said["again"].err
    assert "per 1,000 steps" not in said["again"].err
    assert "mIoU" not in said["again"].err


def test_recipe_config_and_flags_in_their_order(ssr, tiny_voc, models, tmp_path):
    config = tiny_voc.write_config(
        tmp_path / "my.toml", models,
        '[run]\nprecision = "fp32"\n[train]\ncrop = 64\nbatch = 2\nhidden = 16\ndecoder_heads = 2\niterations = 3\n'
        "clip_layers = 2\npar_dilations = [1]\n",
    )  # fmt: skip
    work = tmp_path / "w"
    ssr("train", "--config", config, "--work", work, "--recipe", "weclip", "--iterations", 2)
    settings = json.loads((work / "model.json").read_text())["settings"]
    found = [settings[key] for key in ("iterations", "clip_layers", "affinity_loss", "par_dilations", "min_scale")]
    assert found == [2, 2, 0.1, [1], 0.5]  # flag, config, recipe, config, default
    assert settings["refine"]["box_mask"] is True
    before = (work / "model.safetensors").read_bytes()
    ran = ssr("train", "--work", work, "--iterations", 2)  # the directory remembers the rest
    assert "2 already done" in ran.err
    assert (work / "model.safetensors").read_bytes() == before


def test_interrupted_it_says_how_to_go_on(ssr, tiny_voc, tmp_path, monkeypatch):
    from pipelines.training.segmentation import SegmentationTrainer

    step = SegmentationTrainer.step

    def stopping(trainer, *parts):
        if trainer.iteration == 3:
            raise KeyboardInterrupt
        return step(trainer, *parts)

    made = ("train", "--config", tiny_voc.config, "--work", tmp_path / "w", *SMALL, *WECLIP)
    monkeypatch.setattr(SegmentationTrainer, "step", stopping)
    assert "run the same command to go on" in ssr(*made, code=130).err
    monkeypatch.setattr(SegmentationTrainer, "step", step)
    assert "train: 4 steps, 2 already done" in ssr(*made).err


@pytest.mark.parametrize("supervision", ["pseudo", "masks"])
@pytest.mark.parametrize("dataset", ["tiny_folder", "tiny_coco"])
def test_other_datasets_go_the_same_way(dataset, supervision, request, ssr, tmp_path):
    found, work = request.getfixturevalue(dataset), tmp_path / "work"
    made = ("--config", found.config, "--work", work)
    ssr("superpixels", *made)
    ssr("train", *made, *SMALL, "--supervision", supervision)
    ssr("predict", *made)
    (folder,) = [path for path in (work / "predictions").iterdir() if path.is_dir()]
    assert {path.stem for path in folder.glob("*.png")} == set(found.ids)
