"""The three networks on a pyramid and on a ViT: built by mmsegmentation, they take any photo and learn with class weights."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipelines.encoders.model_config import TimmModel
from pipelines.mmsegmentation.backbone import Backbone, timm_backbone
from pipelines.mmsegmentation.network import CHANNELS, OUTPUT_STRIDE, network
from pipelines.mmsegmentation.retrained import build
from pipelines.options.retrain import NETWORKS

pytest.importorskip("mmengine")

BACKBONES = {
    "resnet18": TimmModel("resnet18"),
    "vit": TimmModel("vit_tiny_patch16_224", {"depth": 4, "embed_dim": 48, "num_heads": 3}),
}
CLASSES, CROP = 3, 64


def backbone_of(name: str, backbone: str) -> Backbone:
    return timm_backbone(BACKBONES[backbone], "none", OUTPUT_STRIDE.get(name))


@functools.cache
def built(name: str, backbone: str, weights: tuple[float, ...] | None = None) -> nn.Module:
    torch.manual_seed(0)
    return build(network(name, backbone_of(name, backbone), CLASSES, CROP, 16, weights)).eval()


def batch(images: Tensor, labels: Tensor | None = None) -> dict[str, Any]:
    """What mmsegmentation's preprocessor takes: (B, 3, H, W) bytes, and (B, H, W) labels for training."""
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    shape = tuple(images.shape[-2:])
    samples = [SegDataSample(metainfo={"ori_shape": shape, "img_shape": shape}) for _ in images]
    for sample, one in zip(samples, labels if labels is not None else (), strict=False):
        sample.gt_sem_seg = PixelData(data=one[None])
    return {"inputs": list(images), "data_samples": samples}


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("height", "width"), [(64, 64), (64, 90), (37, 51), (130, 33)])
def test_logits_of_any_photo(name: str, backbone: str, height: int, width: int) -> None:
    model: Any = built(name, backbone)
    images = torch.randint(0, 256, (2, 3, height, width), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    data = model.data_preprocessor(batch(images), False)
    with torch.no_grad():
        logits = model.inference(data["inputs"], [sample.metainfo for sample in data["data_samples"]])
    patch = 16 if backbone == "vit" else 1
    padded = (-(-height // patch) * patch, -(-width // patch) * patch)
    assert logits.shape == (2, CLASSES, *padded)  # padding is at the right and below
    assert logits.isfinite().all()
    assert logits.std() > 0


@pytest.mark.parametrize("backbone", BACKBONES)
def test_photos_are_bgr_bytes(backbone: str) -> None:
    images = torch.randint(0, 256, (1, 3, 32, 48), dtype=torch.uint8)
    found = built("segformer", backbone).data_preprocessor(batch(images), False)["inputs"]
    described = backbone_of("segformer", backbone)
    mean, std = (torch.tensor(values)[:, None, None] for values in (described.mean, described.std))
    torch.testing.assert_close(found[0], (images[0].flip(0) / 255 - mean) / std, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("channels", "backbone"), [(0, "resnet18"), (24, "resnet18"), (24, "vit")])
def test_width_of_the_head(name: str, channels: int, backbone: str) -> None:
    config = network(name, backbone_of(name, backbone), CLASSES, CROP, channels)
    head: Any = build(config).decode_head
    assert head.channels == (channels or CHANNELS[name])
    assert head.conv_seg.weight.shape == (CLASSES, channels or CHANNELS[name], 1, 1)


def test_deeplab_keeps_finer_maps_of_a_resnet_only() -> None:
    sides = {}
    for name in NETWORKS:
        model: Any = built(name, "resnet18")
        with torch.no_grad():
            sides[name] = model.backbone(torch.zeros(1, 3, CROP, CROP))[-1].shape[-1]
    assert sides == {"deeplabv3plus": CROP // 16, "segformer": CROP // 32, "upernet": CROP // 32}


def heads(model: nn.Module) -> list[tuple[float, Any]]:
    """Heads that learn, and how much each counts."""
    found: list[tuple[float, Any]] = [(1.0, model.decode_head)]
    return found + ([(0.4, model.auxiliary_head)] if hasattr(model, "auxiliary_head") else [])


@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("weights", [None, (0.5, 2.0, 1.0)])
@pytest.mark.parametrize("name", NETWORKS)
def test_class_weights_reach_every_loss(name: str, weights: tuple[float, ...] | None, ignored: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, CLASSES, 6, 7, generator=generator, requires_grad=True)
    labels = torch.randint(0, CLASSES, (2, 6, 7), generator=generator)
    if ignored:
        labels[:, :2] = 255
    twin = F.cross_entropy(logits, labels, torch.tensor(weights) if weights else None, ignore_index=255)
    (expected,) = torch.autograd.grad(twin, logits)
    found = heads(built(name, "resnet18", weights))
    assert len(found) == (1 if name == "segformer" else 2)
    for share, head in found:
        loss = head.loss_decode(logits, labels, ignore_index=head.ignore_index).mean()
        assert loss.isfinite()
        (actual,) = torch.autograd.grad(loss, logits)
        cosine = F.cosine_similarity(actual.flatten(), expected.flatten(), dim=0)  # however it is averaged
        assert cosine > 1 - 1e-5
        if weights is None:
            torch.testing.assert_close(loss, share * twin)


@pytest.mark.parametrize("weights", [None, (0.5, 2.0, 1.0)])
@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_step_moves_every_part(name: str, backbone: str, weights: tuple[float, ...] | None) -> None:
    model: Any = built(name, backbone, weights)
    model.zero_grad()
    generator = torch.Generator().manual_seed(2)
    labels = torch.randint(0, CLASSES, (2, CROP, CROP), generator=generator)
    labels[:, :, 50:] = 255  # as beside a photo smaller than the crop
    images = torch.randint(0, 256, (2, 3, CROP, CROP), generator=generator, dtype=torch.uint8)
    data = model.data_preprocessor(batch(images, labels), True)
    loss, _ = model.parse_losses(model.loss(**data))
    loss.backward()
    for part in ("backbone", "decode_head", "auxiliary_head", "neck"):
        found = [one.grad for one in getattr(model, part, nn.Module()).parameters() if one.grad is not None]
        assert all(one.isfinite().all() for one in found)
        assert sum(one.abs().sum().item() for one in found) > 0 or not hasattr(model, part), part


def test_a_vit_gets_a_pyramid_unless_its_head_wants_none() -> None:
    assert {name: hasattr(built(name, "vit"), "neck") for name in NETWORKS} == {
        "deeplabv3plus": True,
        "segformer": False,
        "upernet": True,
    }
    assert not any(hasattr(built(name, "resnet18"), "neck") for name in NETWORKS)
