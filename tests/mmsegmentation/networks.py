"""Small retrained networks of random weights, and what they say of an image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from pipelines.datasets.base import Sample
from pipelines.encoders.model_config import TimmModel
from pipelines.mmsegmentation.retrained import Design, Retrained, RetrainedPredictor, build
from pipelines.options.train import PredictOptions

NAMES = ("cat", "dog", "bird")
VIT = TimmModel("vit_tiny_patch16_224", {"depth": 4, "embed_dim": 48, "num_heads": 3}, {"mean": [0.4, 0.5, 0.6]})
DESIGN = Design("segformer", VIT, 16, NAMES, 64)


def random_network(design: Design) -> nn.Module:
    """Random weights and batch statistics, as after some training."""
    torch.manual_seed(0)
    model = build(design.config())
    for name, one in model.state_dict().items():
        if name.endswith(("running_mean", "running_var")):
            one.copy_(torch.rand_like(one) + 0.5)
    return model.eval()


def logits(model: nn.Module, folder: Path, **options: Any) -> torch.Tensor:
    """Of a photo that no patch divides."""
    pixels = np.random.default_rng(0).integers(0, 256, (70, 93, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "photo.png")
    predictor = RetrainedPredictor(
        Retrained(model, NAMES, 64, "pseudo", 17), PredictOptions(**options), torch.device("cpu"), torch.float32
    )
    return predictor.logits([predictor.photo(Sample("photo", folder / "photo.png", ()), Image.fromarray(pixels))])
