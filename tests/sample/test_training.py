"""The scripts that make the embedded models: a few steps, and the files they write are models that load."""

from __future__ import annotations

import importlib
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pipelines.encoders.weights import build_clip, build_dino, resolve_clip, resolve_dino
from pipelines.sample.picture import Picture
from pipelines.stages.sample import models_folder

SCRIPTS = Path(__file__).parents[2] / "scripts"
MODELS = models_folder()


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Import a script with few pictures, and run its main on a file in ``tmp_path``."""
    monkeypatch.syspath_prepend(str(SCRIPTS))

    def load(name: str) -> ModuleType:
        for known in ("drawn_images", name):
            monkeypatch.delitem(sys.modules, known, raising=False)
        drawn = importlib.import_module("drawn_images")
        few = drawn._draw(drawn.TRAINING_SEED, drawn.SMALL, 32)
        monkeypatch.setattr(drawn, "drawn_images", lambda count, size: few)
        module = importlib.import_module(name)
        monkeypatch.setattr(sys, "argv", [name, "--out", str(tmp_path / "out.safetensors")])
        return module

    return load


def test_clip_script_writes_a_clip_of_the_package(script, monkeypatch, tmp_path) -> None:
    module = script("train_sample_clip")
    monkeypatch.setattr(module, "HELD_OUT", 16)
    monkeypatch.setattr(module, "PHASES", tuple(replace(phase, steps=1, batch=4, crop=(60, 128)) for phase in module.PHASES))
    module.main()
    loaded = build_clip(resolve_clip(str(MODELS / "clip.json"), str(tmp_path / "out.safetensors")))
    assert loaded.has_text


def test_dino_script_writes_a_dino_of_the_package(script, monkeypatch, tmp_path) -> None:
    module = script("train_sample_dino")
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--batch", "4", "--steps", "2"])
    module.main()
    build_dino(resolve_dino(str(MODELS / "dino.json"), str(tmp_path / "out.safetensors")))


def test_truth_of_patches_follows_crop_and_mirror(script) -> None:
    script("train_sample_clip")
    drawn = importlib.import_module("drawn_images")
    image, things = np.zeros((128, 160, 3), np.uint8), np.zeros((128, 160), np.uint8)
    image[:32, :80], things[:32, :80] = 255, 3
    one = Picture(image, things, (4,), "road", (("car", "red"),), ((0.0, 0.0, 0.5, 0.25),), ("cone",), things)
    torch.manual_seed(0)
    many = drawn.described([one] * 20)
    crops = drawn.Crops.random(many, 43, 128)
    whole, regions = crops.phrases(many, 16)
    shown = crops.pixels(many, 128).mean(1).view(20, 16, 8, 16, 8)[:, :, 4, :, 4] > 0.5  # at the centres
    thing, share = (values.view(20, 16, 16) for values in crops.things(many, 16))
    scene = int(many.scene[0])
    for row in range(20):
        car = regions[row, :, drawn.COLUMN["car"]].view(16, 16)
        assert torch.equal(car, regions[row, :, drawn.COLUMN["red car"]].view(16, 16)), "both phrases of the box"
        assert torch.equal(regions[row, :, scene].view(16, 16), 1 - car), "the scene is where no box is"
        assert whole[row, drawn.COLUMN["car"]] == car.amax()
        assert whole[row, drawn.COLUMN["cone"]] == whole[row, scene] == 1
        inside = share[row] == 1
        assert torch.equal((thing[row] == 3)[inside], car.bool()[inside]), "the box is the thing"
        assert torch.equal(shown[row][inside], car.bool()[inside]), "and is what shows"
    assert set(crops.mirrored.tolist()) == {True, False}


def test_attention_is_best_that_goes_to_all_of_its_own_thing_alike(script) -> None:
    script("train_sample_clip")
    drawn = importlib.import_module("drawn_images")
    thing, share = torch.tensor([[0, 0, 1, 1]]), torch.tensor([[1.0, 1.0, 1.0, 0.5]])  # the last patch is on a border

    def loss(rows: list[list[float]]) -> float:
        return float(drawn.thing_loss(torch.tensor([[*rows, [1.0, 0.0, 0.0, 0.0]]]), thing, share))

    best = [[0.5, 0.5, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.5, 0.5]]
    assert loss(best) == pytest.approx(np.log(2) - np.log(4), abs=1e-4)
    assert loss([[0.25] * 4] * 3) == pytest.approx(0, abs=1e-4)
    for worse in ([0.9, 0.1, 0.0, 0.0], [0.4, 0.4, 0.1, 0.1]):
        assert loss([worse, *best[1:]]) > loss(best) + 0.05


def test_folding_the_patch_embedding_is_enlarging_each_patch(script) -> None:
    script("train_sample_clip")
    drawn = importlib.import_module("drawn_images")
    generator = torch.Generator().manual_seed(0)
    kernel, patch = torch.randn(5, 3, 16, 16, generator=generator), torch.randn(1, 3, 8, 8, generator=generator)
    enlarged = F.interpolate(patch, scale_factor=2, mode="bilinear", align_corners=False)
    assert torch.allclose(F.conv2d(patch, drawn.for_half_size(kernel)), F.conv2d(enlarged, kernel), atol=1e-4)
