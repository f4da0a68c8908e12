"""No ground truth is opened but where a person asks for it: `eval`, `--gt`, `labels --from masks`."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """\
import json, sys
import open_clip, torch
open_clip.add_model_config(sys.argv[1])
torch.set_num_threads(1)
from typer.testing import CliRunner
from ssr_cli.app import app

opened = []

def watch(event, args):
    # every way to a file's bytes, from Python or through os
    if event in ("open", "os.open") and isinstance(args[0], (str, bytes)):
        path = args[0] if isinstance(args[0], str) else args[0].decode(errors="replace")
        if "SegmentationClass" in path:
            opened.append(path)

sys.addaudithook(watch)
open("/dev/null").close()
for argv in json.loads(sys.stdin.read()):
    opened.clear()
    result = CliRunner().invoke(app, argv)
    print(json.dumps({"code": result.exit_code, "opened": list(opened), "said": result.output[-400:]}), flush=True)
"""

RETRAIN = (
    "--model", "segformer", "--backbone", "dino", "--schedule", "2", "--batch", "2", "--crop", "64", "--channels", "16",
)  # fmt: skip
BLIND = {
    "superpixels": ["superpixels"],
    "align": ["align", "--iterations", "6", "--tokens", "8", "--hidden", "8"],
    "cams": ["cams"],
    "cams, aligned": ["cams", "--ckpt", "CHECKPOINT", "--force"],
    "show features": ["show", "features"],
    "refine": ["refine"],
    "refine, crf": ["refine", "--boundary", "crf", "--force", "--workers", "1"],
    "refine, par": ["refine", "--boundary", "par", "--force", "--workers", "1"],
    "tag": ["tag"],
    "predict": ["predict", "--model", "MODEL", "--probabilities"],
    "refine, probabilities": ["refine", "--probabilities", "auto", "--force", "--workers", "1"],
    "predict, no model": ["predict", "--model", "tags", "--workers", "1"],
    "predict photos": ["predict", "--model", "MODEL", "--images", "PHOTOS"],
    "retrain": ["retrain", *RETRAIN],
    "predict retrained": ["predict", "--model", "retrained"],
    "ablation": ["ablation", "--workers", "1"],
    "show": ["show", "--count", "2"],
    "report": ["report", "--count", "2"],
    "export": ["export", "cvat"],
    "export coco": ["export", "coco"],
    "import": ["import", "CORRECTED"],
    "status": ["status"],
    "doctor": ["doctor"],
    "text": ["text", "BANK"],
    "labels from xml": ["labels", "ANNOTATIONS", "OUT", "--from", "xml"],
    "labels check": ["labels", "--check", "--work", "WORK"],
}
ASKED = {
    "retrain, val": ["retrain", *RETRAIN, "--val-split", "train_aug", "--write-only"],
    "retrain, masks": ["retrain", *RETRAIN, "--supervision", "masks", "--force"],
    "eval": ["eval", "--no-pictures"],
    "eval cams": ["eval", "cams", "--no-pictures"],
    "eval ablation": ["eval", "ablation", "--no-pictures"],
    "report --gt": ["report", "--gt", "--count", "2"],
    "show --gt": ["show", "--gt", "--count", "2"],
    "doctor --gt": ["doctor", "--gt"],
    "labels from masks": ["labels", "MASKS", "OUT", "--from", "masks"],
}


@pytest.fixture(scope="module")
def told(tiny_voc, models, write_model, tmp_path_factory):
    """What each command opened below a folder of ground truth, in one process with an audit hook."""
    folder = tmp_path_factory.mktemp("leakage")
    root = Path(shutil.copytree(tiny_voc.root, folder / "VOC2012"))
    shutil.copytree(root / "SegmentationClass", root / "SegmentationClassAug")
    (root / "ImageSets/Segmentation/train_aug.txt").write_text((root / "ImageSets/Segmentation/train.txt").read_text())
    places = {
        "BANK": folder / "bank.safetensors",
        "ANNOTATIONS": root / "Annotations",
        "MASKS": root / "SegmentationClass",
        "OUT": folder / "out.csv",
        "WORK": folder / "work",
        "CHECKPOINT": folder / "work/cmpa.safetensors",
        "MODEL": write_model(folder / "model.safetensors"),
        "PHOTOS": root / "JPEGImages",
        "CORRECTED": folder / "work/exports/coco-train_aug/annotations/instances_train_aug.json",
    }
    made = ["--config", str(tiny_voc.config), "--root", str(root), "--split", "train_aug", "--work", str(folder / "work")]
    commands = []
    for argv in (*BLIND.values(), *ASKED.values()):
        words = [str(places.get(word, word)) for word in argv]
        extra = {"labels": [], "status": ["--work", str(folder / "work")]}.get(argv[0], made)
        if (
            argv[0] == "import"
        ):  # into a work directory of its own: the trainings of this one take corrections where there are any
            extra = [*made[:-1], str(folder / "other")]
        if argv[0] == "text":
            extra = [*made, "--clip-pretrained", str(models.full)]
        commands.append([*words, *extra])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(models.clip_config)],
        input=json.dumps(commands), capture_output=True, text=True, check=True, timeout=300,
    )  # fmt: skip
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return dict(zip((*BLIND, *ASKED), lines, strict=True))


@pytest.mark.parametrize("command", BLIND)
def test_never_opens_ground_truth(told, command):
    assert told[command]["code"] == 0, told[command]["said"]
    assert told[command]["opened"] == []


@pytest.mark.parametrize("command", ASKED)
def test_opens_it_when_asked(told, command):
    """Also shows that the hook sees what it should."""
    assert told[command]["code"] == 0, told[command]["said"]
    assert told[command]["opened"]


def test_result_is_the_same_without_any_mask_on_disk(finished, tiny_voc, ssr, tmp_path):
    """Worker processes escape an audit hook; they cannot open what is not there."""
    root = Path(shutil.copytree(tiny_voc.root, tmp_path / "VOC2012"))
    shutil.rmtree(root / "SegmentationClass")
    for stage in ("superpixels", "cams", "refine", "show", "doctor"):
        ssr(stage, "--config", tiny_voc.config, "--root", root, "--work", tmp_path / "w", "--recipe", "ssr")
    for name in ("superpixels.h5", "cams.h5", "refined.h5", *(f"masks/{image_id}.png" for image_id in tiny_voc.ids)):
        assert (tmp_path / "w" / name).read_bytes() == (finished["ssr"] / name).read_bytes()
    assert "--mask-folder" in ssr("eval", "--config", tiny_voc.config, "--root", root, "--work", tmp_path / "w", code=2).err
