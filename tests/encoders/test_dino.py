from __future__ import annotations

from pathlib import Path

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from pipelines.encoders import dino as dino_module
from pipelines.encoders.dino import DinoEncoder
from pipelines.encoders.weights import Weights, resolve_dino

CPU = torch.device("cpu")


@pytest.fixture(params=["plain", "registers"])
def encoder(request: pytest.FixtureRequest, dino_file: Path, monkeypatch: pytest.MonkeyPatch) -> DinoEncoder:
    """timm's smallest ViT from a file, and one with everything DINOv2 and v3 have: registers, layer scale, q and k norms."""
    if request.param == "plain":
        return DinoEncoder(resolve_dino("test_vit", str(dino_file)), CPU)

    def build(_: Weights) -> nn.Module:
        torch.manual_seed(0)
        model = VisionTransformer(
            img_size=64, patch_size=16, embed_dim=32, depth=3, num_heads=4, reg_tokens=4, init_values=0.1, qk_norm=True,
            num_classes=0, dynamic_img_size=True,
        )  # fmt: skip
        model.pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
        for parameter in model.parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))
        return model

    monkeypatch.setattr(dino_module, "build_dino", build)
    return DinoEncoder(Weights("registers", "hub"), CPU)


def _images(batch: int = 2, height: int = 48, width: int = 80) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(5))


@torch.inference_mode()
def _watch(model: VisionTransformer, images: Tensor) -> tuple[Tensor, list[Tensor]]:
    """timm's own forward: the input of the last block, and what its unfused attention multiplies the values with."""
    inputs: list[Tensor] = []
    softmaxes: list[Tensor] = []
    hooks = [model.blocks[-1].register_forward_pre_hook(lambda _, args: inputs.append(args[0]))]
    for block in model.blocks:
        block.attn.fused_attn = False
        hooks.append(block.attn.attn_drop.register_forward_hook(lambda _, __, out: softmaxes.append(out.mean(dim=1))))
    model.forward_features(images)
    for hook in hooks:
        hook.remove()
    return inputs[0], softmaxes


@pytest.mark.parametrize(("height", "width"), [(64, 64), (48, 80), (16, 16)])
@pytest.mark.parametrize("blocks", [(0,), (-1,), (0, 1, -1)])
def test_same_as_timm(encoder: DinoEncoder, height: int, width: int, blocks: tuple[int, ...]) -> None:
    images = _images(2, height, width)
    asked = [i % len(encoder.blocks) for i in blocks]
    found = encoder.encode(images, asked)
    tokens, softmaxes = _watch(encoder.model, images)
    prefix = encoder.model.num_prefix_tokens
    patches = height * width // 256
    assert tokens.shape[1] == prefix + patches
    full = torch.stack([softmaxes[i] for i in asked]).mean(0)
    torch.testing.assert_close(full.sum(-1), torch.ones(2, prefix + patches))
    assert found.attention.shape == (2, patches, patches)
    torch.testing.assert_close(found.attention, full[:, prefix:, prefix:], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.tokens, tokens[:, prefix:], rtol=1e-5, atol=1e-5)


def test_the_full_matrix_has_rows_that_sum_to_one(encoder: DinoEncoder) -> None:
    with torch.inference_mode():
        x = torch.randn(2, 7, encoder.model.embed_dim)
        attention = encoder.tower.attention(0, x, (2, 2))
    torch.testing.assert_close(attention.sum(-1), torch.ones(2, 7))


def test_an_image_does_not_see_its_batch(encoder: DinoEncoder) -> None:
    images = _images(3)
    together = encoder.encode(images, (0, 2))
    for i in range(3):
        alone = encoder.encode(images[i : i + 1], (0, 2))
        torch.testing.assert_close(alone.attention[0], together.attention[i], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(alone.tokens[0], together.tokens[i], rtol=1e-5, atol=1e-5)


def test_bf16_is_near(dino_file: Path) -> None:
    weights = resolve_dino("test_vit", str(dino_file))
    exact = DinoEncoder(weights, CPU).encode(_images(), (0, 5))
    found = DinoEncoder(weights, CPU, torch.bfloat16).encode(_images(), (0, 5))
    assert found.attention.dtype == found.tokens.dtype == torch.float32
    torch.testing.assert_close(found.attention, exact.attention, rtol=0.05, atol=2e-3)
    assert (found.tokens - exact.tokens).norm() < 0.03 * exact.tokens.norm()


@pytest.mark.parametrize("blocks", [(), (99,)])
def test_no_such_block(encoder: DinoEncoder, blocks: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected at least one block|expected numbers from"):
        encoder.encode(_images(), blocks)


def test_a_block_that_is_not_there_does_not_dilute_the_mean(encoder: DinoEncoder) -> None:
    try:
        found = encoder.encode(_images(), (0, 99))
    except ValueError:
        return  # refusing is as good
    torch.testing.assert_close(found.attention, encoder.encode(_images(), (0,)).attention)


def test_what_the_encoder_tells(dino_file: Path) -> None:
    encoder = DinoEncoder(resolve_dino("test_vit", str(dino_file)), CPU)
    assert encoder.patch_size == 16
    assert len(encoder.blocks) == 6
    assert len(encoder.mean) == len(encoder.std) == 3
    assert not any(p.requires_grad for p in encoder.model.parameters())
