"""A CLIP and a DINO of a few thousand weights, registered and saved like real ones."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from pipelines.encoders.weights import LoadedClip, build_clip, resolve_clip

State = dict[str, Tensor]


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weight files, and two models known to open_clip: ``tiny-clip-quickgelu`` and ``tiny-clip``."""
    folder = tmp_path_factory.mktemp("tiny")
    for name, quick in (("tiny-clip-quickgelu", True), ("tiny-clip", False)):
        config = {
            "embed_dim": 32,
            "quick_gelu": quick,
            "vision_cfg": {"image_size": 32, "layers": 3, "width": 32, "patch_size": 8, "head_width": 8},
            "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 1},
        }
        (folder / f"{name}.json").write_text(json.dumps(config))
        open_clip.add_model_config(folder / f"{name}.json")
    return folder


@pytest.fixture(scope="session")
def clip_state(tiny_folder: Path) -> State:
    torch.manual_seed(0)
    model = open_clip.create_model("tiny-clip-quickgelu", pretrained=None, load_weights=False)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim <= 1 and name != "logit_scale":  # biases and norms that are not all ones and zeros
                parameter.add_(0.2 * torch.randn_like(parameter))
        model.logit_scale.fill_(3.0)
    return {name: tensor.clone().contiguous() for name, tensor in model.state_dict().items()}


@pytest.fixture(scope="session")
def clip_file(tiny_folder: Path, clip_state: State) -> Path:
    save_file(clip_state, tiny_folder / "full.safetensors")
    return tiny_folder / "full.safetensors"


@pytest.fixture
def tiny_clip(clip_file: Path) -> LoadedClip:
    """Fresh each time: an encoder takes its tower over."""
    return build_clip(resolve_clip("tiny-clip-quickgelu", str(clip_file)))


@pytest.fixture(scope="session")
def dino_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("dino") / "dino.safetensors"
    save_file(timm.create_model("test_vit").state_dict(), path)
    return path
