"""Backbones of every kind through the commands, in random weights of small sizes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from pipelines.datasets.classes import VOC12
from pipelines.encoders.text import TextBank, write_bank
from tests.fixtures.commands import Ssr
from tests.fixtures.datasets import TinyDataset
from tests.fixtures.maps import maps
from tests.fixtures.towers import FORMS, embed_dim, shaken, write_clip

SIZES = {"img_size": 64, "embed_dim": 48, "depth": 3, "num_heads": 3}
DINOS = {
    "DINO": "vit_small_patch16_224",
    "DINOv2 with registers": "vit_small_patch14_reg4_dinov2",
    "DINOv3": "vit_small_patch16_dinov3",
}


@pytest.fixture
def work(finished: dict[str, Path], tmp_path: Path) -> Path:
    """Superpixels and CAMs."""
    shutil.copytree(finished["ssr"], tmp_path / "work", ignore=shutil.ignore_patterns("masks*", "refined*"))
    return tmp_path / "work"


@pytest.mark.parametrize("name", DINOS)
def test_refine(name: str, work: Path, tiny_voc: TinyDataset, ssr: Ssr, tmp_path: Path) -> None:
    config, weights = tmp_path / "dino.json", tmp_path / "dino.safetensors"
    config.write_text(json.dumps({"architecture": DINOS[name], "model_args": SIZES}))
    model = shaken(timm.create_model(DINOS[name], num_classes=0, **SIZES))
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, weights)
    words = ("--config", tiny_voc.config, "--work", work, "--dino-model", config, "--dino-pretrained", weights)
    ssr("refine", *words, "--dino-blocks", 2, "--dino-weight", 1)
    refined = maps(work / "refined.h5")
    assert set(refined) == set(tiny_voc.ids)
    other = maps(work / "cams.h5")
    assert all(np.isfinite(refined[image_id]).all() for image_id in refined)
    assert not np.allclose(refined["b_trio"], other["b_trio"], atol=1e-2)
    assert len(list((work / "masks").glob("*.png"))) == len(refined)
    gated = "are under the DINOv3 License" in ssr("doctor", *words).text.replace("\n", " ")
    assert gated == (name == "DINOv3")


@pytest.mark.parametrize("name", FORMS)
def test_cams(name: str, tiny_voc: TinyDataset, ssr: Ssr, tmp_path: Path) -> None:
    config, weights = write_clip(tmp_path, name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for bank, names in (("voc", VOC12.names), ("background", ("ground", "sky"))):
            rows = torch.nn.functional.normalize(torch.randn(len(names), embed_dim(name)), dim=1)
            write_bank(tmp_path / f"{bank}.safetensors", TextBank(rows, tuple(names), name, "random", "{}"))
    banks = ("--text-bank", tmp_path / "voc.safetensors", "--background-bank", tmp_path / "background.safetensors")
    words = ("--clip-model", config, "--clip-pretrained", weights, *banks, "--root", tiny_voc.root, "--precision", "fp32")
    ssr("cams", "voc", *words, "--work", tmp_path / "work", "--readout", "mix", "--superpixel-share", 0)
    cams = maps(tmp_path / "work/cams.h5")
    assert set(cams) == set(tiny_voc.ids)
    assert cams["b_trio"].shape[0] == 3
    assert cams["b_trio"].std() > 0.05
