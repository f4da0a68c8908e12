"""``ssr retrain`` as a person types it: the way from pseudo-masks to scored label maps, its messages and exit codes."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("mmengine")

SMALL = (
    "--model", "segformer", "--backbone", "dino", "--schedule", 4, "--batch", 2, "--crop", 64, "--channels", 16, "--workers", 1,
)  # fmt: skip


@pytest.fixture(scope="module")
def way(finished, tiny_voc, ssr, tmp_path_factory):
    """What each command said, in order, and the work directory after them. Copy before changing."""
    work = Path(shutil.copytree(finished["ssr"], tmp_path_factory.mktemp("way") / "work"))
    said = {}
    for name, words in {
        "config": ["retrain", *SMALL, "--write-only"],
        "retrain": ["retrain", *SMALL, "--val-split", "val", "--validate-every", 2],
        "predict": ["predict", "--model", "retrained", "--split", "val"],
        "eval": ["eval", "retrained", "--split", "val", "--no-pictures"],
        "status": ["status"],
    }.items():
        where = ["--work", work] if name == "status" else ["--config", tiny_voc.config, "--work", work]
        said[name] = ssr(*words, *where)
    return work, said


def test_each_step_names_the_next(way):
    work, said = way
    assert f"config in {work / 'retrain/config.py'}" in said["config"].out
    assert f"next: ssr retrain --work {work}" in said["config"].out
    assert f"next: ssr predict --model retrained --work {work}" in said["retrain"].out
    assert f"next: ssr eval retrained --split val --work {work}" in said["predict"].out


def test_outputs(way):
    work, said = way
    assert json.loads((work / "retrained.json").read_text())["complete"] is True
    assert {path.name for path in (work / "retrain").iterdir() if path.name != ".lock"} == {
        "config.py", "train.txt", "val.txt", "state.pth", "best.safetensors", "curves.jsonl", "curves.png", "mmengine",
        "photos.json",
    }  # fmt: skip
    assert {path.stem for path in (work / "retrained/val").glob("*.png")} == {"e_pair", "f_car"}
    assert (work / "eval/retrained-val/report.json").is_file()
    assert "retrained" in said["status"].out


def test_the_console_is_ours(way):
    _, said = way
    both = said["retrain"].out + said["retrain"].err
    assert "mmengine" not in both.lower().replace("(mmsegmentation", "")
    assert "mIoU" in said["retrain"].err
    logs = list((way[0] / "retrain/mmengine").rglob("*.log"))
    assert any("Iter(train)" in log.read_text() or "Exp name" in log.read_text() for log in logs)


def test_its_onnx_gives_the_same_label_maps_without_mmsegmentation(way, ssr, tiny_voc, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    work, _ = way
    file = tmp_path / "retrained.onnx"
    written = ssr("onnx", "--model", "retrained", "--work", work, "--output", file, "--compare", 3).out
    assert "100.0000% of the pixels have the same class" in written
    assert "opset 18" in written
    assert "shorter side is scaled to 64 pixels" in written
    for name in ("mmseg", "mmcv", "mmengine", "cv2"):
        monkeypatch.setitem(sys.modules, name, None)  # its import fails
    photos = ("--images", tiny_voc.root / "JPEGImages", "--output", tmp_path / "maps", "--model", file)
    ssr("predict", *photos, "--clip-pretrained", tmp_path / "nowhere.safetensors")
    values = set()
    for name in ("e_pair", "f_car"):
        with Image.open(work / f"retrained/val/{name}.png") as ours, Image.open(tmp_path / f"maps/{name}.png") as theirs:
            assert np.array_equal(np.asarray(ours), np.asarray(theirs))
            values |= set(np.unique(np.asarray(ours)).tolist())
    assert len(values) > 1


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--schedule", "0"), 2, "schedule"),
        (("--schedule", "20x"), 2, "schedule"),
        (("--batch", 1), 2, "--batch"),
        (("--learning-rate", 1), 2, "made with other options"),
    ],
)
def test_messages(way, ssr, tiny_voc, words, code, message):
    said = ssr("retrain", *SMALL, *words, "--config", tiny_voc.config, "--work", way[0], code=code)
    assert message in said.err
    assert "Traceback" not in said.err


def test_bad_masks_are_left_out_and_the_exit_code_says_so(way, ssr, tiny_voc, tmp_path):
    work = Path(shutil.copytree(way[0], tmp_path / "work"))
    (work / "masks/c_bird.png").write_bytes(b"not a PNG")
    command = ("retrain", *SMALL, "--config", tiny_voc.config, "--work", work, "--force")
    assert "c_bird" in ssr(*command, "--max-failures", 0, code=1).err
    assert "1 bad images left out" in ssr(*command, "--max-failures", 1, code=3).err
    assert "c_bird" not in (work / "retrain/train.txt").read_text()
