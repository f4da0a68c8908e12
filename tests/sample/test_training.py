"""The scripts that make the embedded models: a few steps, and the files they write are models that load."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pipelines.encoders.weights import build_clip, build_dino, resolve_clip, resolve_dino
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
        few = drawn._draw(drawn.TRAINING_SEED)
        monkeypatch.setattr(drawn, "drawn_images", lambda count: few)
        module = importlib.import_module(name)
        monkeypatch.setattr(sys, "argv", [name, "--out", str(tmp_path / "out.safetensors"), "--batch", "4"])
        return module

    return load


def test_clip_script_writes_a_clip_of_the_package(script, monkeypatch, tmp_path) -> None:
    module = script("train_sample_clip")
    monkeypatch.setattr(module, "HELD_OUT", 16)
    monkeypatch.setattr(module, "PHASES", ((2, 1e-3, 1.0), (1, 1e-3, 2.5)))
    module.main()
    loaded = build_clip(resolve_clip(str(MODELS / "clip.json"), str(tmp_path / "out.safetensors")))
    assert loaded.has_text


def test_dino_script_writes_a_dino_of_the_package(script, monkeypatch, tmp_path) -> None:
    module = script("train_sample_dino")
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--steps", "2"])
    module.main()
    build_dino(resolve_dino(str(MODELS / "dino.json"), str(tmp_path / "out.safetensors")))


def test_truth_of_patches_follows_crop_and_mirror(script) -> None:
    module = script("train_sample_clip")
    drawn = importlib.import_module("drawn_images")
    one = drawn.Described((("car", "red"),), ((0.0, 0.0, 0.5, 0.25),), "road", ("cone",), (4,))
    columns = {phrase: index for index, phrase in enumerate(["car", "cone", "red car", "road"])}
    image = np.zeros((1, 128, 128, 3), np.uint8)
    image[:, :32, :64] = 255
    mirrored = set()
    for seed in range(20):
        x, whole, regions = module.view(image, [one], columns, 3.0, np.random.default_rng(seed))
        car = regions[0, :, 0].view(8, 8).bool()
        assert torch.equal(regions[0, :, 0], regions[0, :, 2]), "both phrases of the box"
        assert torch.equal(regions[0, :, 3], 1 - regions[0, :, 0]), "the scene is where no box is"
        assert whole[0, 0] == car.any()
        assert whole[0, 1] == whole[0, 3] == 1
        shown = x[0].mean(0).view(8, 16, 8, 16)[:, 8, :, 8] > 1.0  # its centre; hidden patches are 0
        assert not (shown & ~car).any()
        mirrored.add(bool(car[:, 0].any() and not car[:, -1].any()))
    assert mirrored == {True, False}


def test_folding_the_patch_embedding_is_enlarging_each_patch(script) -> None:
    script("train_sample_clip")
    drawn = importlib.import_module("drawn_images")
    generator = torch.Generator().manual_seed(0)
    kernel, patch = torch.randn(5, 3, 16, 16, generator=generator), torch.randn(1, 3, 8, 8, generator=generator)
    enlarged = F.interpolate(patch, scale_factor=2, mode="bilinear", align_corners=False)
    assert torch.allclose(F.conv2d(patch, drawn.for_half_size(kernel)), F.conv2d(enlarged, kernel), atol=1e-4)
