"""`ssr retrain` on tiny photos: every network, weights that reproduce logits, mmsegmentation's own run, exact resume."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from pipelines.datasets.image import load_image
from pipelines.errors import SsrError, UsageError
from pipelines.mmsegmentation.retrained import RetrainedPredictor, read_retrained
from pipelines.options.retrain import RetrainOptions
from pipelines.options.stages import EvalOptions
from pipelines.options.train import PredictOptions
from pipelines.stages import evaluate, predict
from pipelines.stages.retrain import stage as retrain
from pipelines.workdir.counts import Counts
from pipelines.workdir.workspace import Workspace
from tests.fixtures.heard import Heard

pytest.importorskip("mmengine")

SMALL = {
    "model": "segformer", "backbone": "dino", "schedule": "4", "batch": 2, "crop": 64, "channels": 16, "warmup": 2,
    "save_every": 2,
}  # fmt: skip
NETWORKS: dict[str, dict[str, Any]] = {
    "deeplabv3plus": {"model": "deeplabv3plus", "backbone": "resnet18", "backbone_weights": "none"},
    "segformer": {},
    "upernet": {"model": "upernet"},
    "segformer, mit": {"backbone": "mit_b0", "backbone_weights": "none"},
}
ONCE = {"scales": (1.0,), "flip": False}


def options(**changes: Any) -> RetrainOptions:
    return RetrainOptions(**{**SMALL, **changes})


@pytest.fixture
def place(workspace_in: Callable[..., Workspace], finished: dict[str, Path], tmp_path: Path) -> Workspace:
    """A work directory with pseudo-masks and nothing else."""
    workspace = workspace_in(tmp_path / "work", workers=1)
    shutil.copytree(finished["ssr"] / "masks", workspace.masks)
    return workspace


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_train_and_their_weights_reproduce_the_logits(place, name):
    counts = retrain.run(place, options(**NETWORKS[name]))
    assert counts.as_dict() == Counts(done=4).as_dict()
    retrained = read_retrained(place.retrained)
    assert (retrained.supervision, retrained.iteration) == ("pseudo", 4)
    stock = stock_network(place.work / "retrain/config.py", place.retrained)
    predictor = RetrainedPredictor(retrained, PredictOptions(**ONCE), torch.device("cpu"), torch.float32)
    first = place.dataset.samples[0]
    photo = predictor.photo(first, load_image(first.image_path))
    found = predictor.logits([photo])
    image = photo.inputs[0]
    data = stock.data_preprocessor({"inputs": [image], "data_samples": [sample(image)]}, False)
    with torch.inference_mode():
        expected = stock.inference(data["inputs"], [data["data_samples"][0].metainfo])[..., : image.shape[1], : image.shape[2]]
    assert torch.equal(found, expected - expected.amax(1, keepdim=True))
    assert (place.work / "retrain/curves.png").is_file()


def stock_network(config: Path, weights: Path) -> Any:
    """What mmsegmentation builds from the written config, with the exported weights."""
    from mmengine.config import Config
    from mmseg.registry import MODELS

    model = MODELS.build(Config.fromfile(config).model)
    model.load_state_dict(load_file(weights))
    return model.eval()


def sample(image: torch.Tensor) -> Any:
    from mmseg.structures import SegDataSample

    return SegDataSample(metainfo={"ori_shape": image.shape[1:], "img_shape": tuple(image.shape[1:])})


STOCK = """\
import json, sys
from pathlib import Path
from pipelines.mmsegmentation.imports import import_mmsegmentation
import_mmsegmentation()  # mmcv-lite's stand-in; nothing else of ours
from mmengine.config import Config
from mmengine.runner import Runner
config = Config.fromfile(sys.argv[1])
config.work_dir = sys.argv[2]
runner = Runner.from_cfg(config)
runner.train()
Path(sys.argv[3]).write_text(json.dumps({"mIoU": float(runner.val()["mIoU"])}))
"""


def test_a_stock_run_of_the_config_gives_the_same_network_and_score(place, tmp_path):
    torch.set_num_threads(1)
    retrain.run(place, options(val_split="train"))
    script = tmp_path / "stock.py"
    script.write_text(STOCK)
    argv = [str(place.work / "retrain/config.py"), str(tmp_path / "stock"), str(tmp_path / "score.json")]
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}  # sums of two threads differ in their last bits from those of one
    subprocess.run([sys.executable, str(script), *argv], check=True, capture_output=True, timeout=600, env=alone)
    score = json.loads((tmp_path / "score.json").read_text())
    scored = [line for line in lines(place) if "val_miou" in line]
    assert [(line["iteration"], line["val_split"]) for line in scored] == [(4, "train")]
    assert scored[0]["val_miou"] == pytest.approx(score["mIoU"] / 100, abs=1e-9)
    saved = torch.load(tmp_path / "stock/iter_4.pth", weights_only=False)["state_dict"]  # written by this test
    ours = load_file(place.retrained)
    assert ours.keys() == saved.keys()
    assert all(torch.equal(ours[key], saved[key]) for key in ours)


def test_validation_is_what_predict_and_eval_say(place):
    retrain.run(place, options(val_split="train", schedule="3"))
    predict.run(place, PredictOptions(model=Path("retrained"), **ONCE))
    evaluation = evaluate.run(place, "retrained", EvalOptions(pictures=False), 1.0)[0]
    assert evaluation.report.what == "retrained-train"
    counts = np.load(evaluation.folder / "confusion.npy")[:, :-1]
    union = counts.sum(0) + counts.sum(1) - counts.diagonal()
    mean = (counts.diagonal()[union > 0] / union[union > 0]).mean()  # mmsegmentation counts classes that are only predicted
    scored = next(line["val_miou"] for line in lines(place) if "val_miou" in line)
    assert mean == pytest.approx(scored, abs=1e-4)  # and rounds to hundredths of a percent


def lines(place: Workspace) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (place.work / "retrain/curves.jsonl").read_text().splitlines()]


def test_resume_is_exact(place, tmp_path, monkeypatch):
    retrain.run(place, options())
    whole = {name: (place.work / name).read_bytes() for name in ("retrained.safetensors", "retrain/curves.jsonl")}
    half = replace(place, work=tmp_path / "half")
    shutil.copytree(place.masks, half.masks)

    def stop(self: Any, iteration: int, mean: Any) -> None:
        if iteration == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(retrain.Outputs, "stepped", stop)
    with pytest.raises(KeyboardInterrupt):
        retrain.run(half, options())
    monkeypatch.undo()
    assert read_retrained(half.retrained).iteration == 2
    counts = retrain.run(half, options())
    assert (counts.done, counts.skipped) == (2, 2)
    assert {name: (half.work / name).read_bytes() for name in whole} == whole


def test_a_finished_training_is_not_taken_again_and_reads_no_photo(place, monkeypatch):
    from pipelines.mmsegmentation import training

    retrain.run(place, options())
    before = place.retrained.stat().st_mtime_ns
    monkeypatch.setattr(training.Runner, "from_cfg", None)
    counts = retrain.run(place, options())
    assert (counts.done, counts.skipped) == (0, 4)
    assert place.retrained.stat().st_mtime_ns == before


def test_other_options_are_refused_until_forced(place):
    retrain.run(place, options(schedule="2"))
    with pytest.raises(UsageError, match=r"made with other options \(learning_rate"):
        retrain.run(place, options(schedule="2", learning_rate=1e-3))
    assert retrain.run(replace(place, force=True), options(schedule="2", learning_rate=1e-3)).done == 2


def test_changed_pseudo_masks_are_other_options(place):
    retrain.run(place, options(schedule="2"))
    path = next(place.masks.glob("*.png"))
    with Image.open(path) as mask:
        mask.putpixel((0, 0), 255)
        mask.save(path)
    with pytest.raises(UsageError, match="label_maps"):
        retrain.run(place, options(schedule="2"))


def test_write_only_writes_a_config_that_runs(place):
    counts = retrain.run(place, options(write_only=True, class_balanced=True, val_split="train"))
    assert counts.done == 0
    assert not place.retrained.exists()
    config = runpy.run_path(str(place.work / "retrain/config.py"))
    assert config["train_cfg"]["max_iters"] == 4
    assert len(config["model"]["decode_head"]["loss_decode"]["class_weight"]) == 21
    names = Path(config["train_dataloader"]["dataset"]["ann_file"]).read_text().split()
    assert names == sorted(path.stem for path in place.masks.glob("*.png"))


def test_a_state_of_other_options_is_not_gone_on_from(place):
    retrain.run(place, options(schedule="2"))
    place.retrained.with_suffix(".json").unlink()
    assert retrain.run(place, options(schedule="2", learning_rate=1e-3)).done == 2


@pytest.mark.parametrize("folder", ["ground truth", "of a supervised model"])
def test_ground_truth_does_not_pass_for_pseudo_masks(place, tmp_path, folder):
    masks = place.dataset.mask_folder
    if folder != "ground truth":
        retrain.run(place, options(schedule="2", supervision="masks"))
        predict.run(place, PredictOptions(model=Path("retrained"), **ONCE))
        masks = place.work / "retrained/train"
    with pytest.raises(UsageError, match="ground truth"):
        retrain.run(replace(place, work=tmp_path / "new"), options(masks=masks))


def test_best_of_a_config_file_and_label_maps_have_their_own_places(place, tmp_path):
    retrain.run(place, options(write_only=True))
    own = tmp_path / "own.py"
    shutil.copy(place.work / "retrain/config.py", own)
    retrain.run(place, options(model=str(own), schedule="2", backbone="auto", channels=0, val_split="train"))
    predict.run(place, PredictOptions(model=place.work / "retrain/best.safetensors", **ONCE))
    assert list((place.work / "retrained/train").glob("*.png"))
    assert not (place.work / "predictions").exists()


def test_write_only_keeps_the_config_of_a_training(place):
    retrain.run(place, options(schedule="2"))
    text = (place.work / "retrain/config.py").read_text()
    with pytest.raises(UsageError, match="its config would be lost"):
        retrain.run(place, options(schedule="3", write_only=True))
    retrain.run(place, options(schedule="2", write_only=True))
    assert (place.work / "retrain/config.py").read_text() == text


def test_bad_validation_photos_stop_before_the_training(place, workspace_in, tiny_voc, tmp_path):
    root = Path(shutil.copytree(tiny_voc.root, tmp_path / "VOC2012"))
    (root / "SegmentationClass/e_pair.png").write_bytes(b"no PNG")
    other = replace(workspace_in(tmp_path / "other", root=root), run=place.run)
    shutil.copytree(place.masks, other.masks)
    with pytest.raises(SsrError, match="e_pair"):
        retrain.run(other, options(val_split="val"))
    assert not (other.work / "retrain/state.pth").exists()


def test_the_config_knows_no_ground_truth_unless_asked(place):
    retrain.run(place, options(write_only=True))
    assert "SegmentationClass" not in (place.work / "retrain/config.py").read_text()
    retrain.run(place, options(write_only=True, val_split="val"))
    config = runpy.run_path(str(place.work / "retrain/config.py"))
    assert "SegmentationClass" not in str(config["train_dataloader"])
    assert "SegmentationClass" in str(config["val_dataloader"])


def test_masks_say_that_they_are_an_upper_bound(place):
    notes = Heard()
    retrain.run(place, options(schedule="2", supervision="masks"), notes)
    assert "upper bound" in " ".join(notes.notes)
    assert read_retrained(place.retrained).supervision == "masks"
    predict.run(place, PredictOptions(model=Path("retrained"), **ONCE))
    report = evaluate.run(place, "retrained", EvalOptions(pictures=False), 1.0)[0].report
    assert "upper bound" in report.rules["supervision"]
    assert "upper bound" in (place.work / "retrain/config.py").read_text()


def test_a_class_never_seen_is_said_in_one_line(place):
    notes = Heard()
    retrain.run(place, options(write_only=True), notes)
    [line] = [line for line in notes.notes if "cannot learn these" in line]
    assert "aeroplane" in line
    assert "cat" not in line.replace("cat,", "").split() or "cow" in line


def test_a_network_of_a_config_file(place, tmp_path):
    retrain.run(place, options(write_only=True))
    own = tmp_path / "own.py"
    own.write_text((place.work / "retrain/config.py").read_text().replace("num_classes=21", "num_classes=19"))
    retrain.run(place, options(model=str(own), schedule="2", backbone="auto", channels=0))
    predict.run(place, PredictOptions(model=Path("retrained"), **ONCE))
    assert len(list((place.work / "retrained/train").glob("*.png"))) == len(place.dataset.samples)
    copied = tmp_path / "elsewhere.safetensors"
    shutil.copy(place.retrained, copied)
    with pytest.raises(UsageError, match="not run from elsewhere"):
        predict.run(place, PredictOptions(model=copied, **ONCE))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "resnet"}, "no network 'resnet': expected deeplabv3plus"),
        ({"model": "gone.py", "backbone": "auto", "channels": 0}, r"found '.*gone.py'"),
        ({"model": "gone.py"}, "gone.py defines the whole network, found --backbone"),
        ({"backbone": "mit_b0", "backbone_weights": "weights.pth"}, "no weights at weights.pth"),
        ({"backbone_weights": "weights.pth"}, "expected hub, none or a .safetensors"),
        ({"min_scale": 3.0}, "nothing between"),
        ({"amp": True}, "needs a GPU"),
        ({"launcher": "torchrun"}, "no processes of torchrun"),
        ({"masks": Path("nowhere")}, "found none"),
        ({"backbone": "resnet18"}, r"cannot set this network up.*--backbone-weights FILE.safetensors or none"),
    ],
)
def test_bad_options_get_one_line(place, changes, message):
    with pytest.raises(SsrError, match=message) as caught:
        retrain.run(place, options(**changes))
    assert "\n" not in str(caught.value)
    assert not place.retrained.exists()


@pytest.mark.parametrize(
    ("missing", "found"),
    [({"mmsegmentation"}, "mmsegmentation is not installed"), ({"mmcv", "mmcv-lite"}, "mmcv-lite is not installed")],
)
def test_without_the_extra_says_what_to_install(place, missing, found, monkeypatch):
    from pipelines.mmsegmentation import imports

    known = imports._installed
    monkeypatch.setattr(imports, "_installed", lambda name: None if name in missing else known(name))
    with pytest.raises(SsrError, match=rf"{found}.*pip install"):
        retrain.run(place, options())
