"""Each adapter against the forward pass of its library, in small models of the classes that released ones have."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from pipelines.encoders.clip import ClipEncoder
from pipelines.encoders.timm_trunk import trunk_of
from pipelines.encoders.tower import VisionTower, walk
from pipelines.encoders.towers import adapter_of
from pipelines.encoders.weights import build_clip, resolve_clip
from pipelines.errors import UsageError
from pipelines.ops.attention import OpenAttention
from pipelines.ops.gradcam import cosine_logits, softmax_gradcam
from tests.fixtures.towers import FORMS, NAMES, SIDE, embed_dim, shaken, write_clip


def opened(model: nn.Module) -> VisionTower:
    return adapter_of(model, "tiny", "--dino-model").make(model)


def images(height: int = SIDE, width: int = SIDE) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(5))


@torch.no_grad()
def watched(model: Any, pixels: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """timm's own forward pass: outputs of all blocks with prefix tokens, and what unfused attention multiplies values with."""
    softmaxes: list[Tensor] = []
    outputs: list[Tensor] = []
    for block in model.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda _, __, out: softmaxes.append(out.mean(dim=1)))
        block.register_forward_hook(lambda _, __, out: outputs.append(out))
    model.forward_features(pixels)
    return outputs, softmaxes


@pytest.mark.parametrize(("height", "width"), [(SIDE, SIDE), (48, 80), (16, 16)])
@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_blocks_and_attention_are_timms(name: str, height: int, width: int) -> None:
    """The model is built for one image size, as open_clip builds its trunks; timm's own takes any."""
    model = shaken(timm.create_model(name, num_classes=0))
    twin = timm.create_model(name, num_classes=0, dynamic_img_size=True).eval()
    twin.load_state_dict(model.state_dict())
    pixels, tower = images(height, width), opened(model)
    outputs, softmaxes = watched(twin, pixels)
    walked = walk(tower, pixels, (1, 2), token_blocks=3, each_block=(0, 2))
    p, depth = tower.prefix, len(tower.blocks)
    assert (walked.grid, depth) == ((height // 16, width // 16), 3)
    torch.testing.assert_close(walked.tokens_cls, outputs[-2], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(walked.block_tokens, torch.stack(outputs)[:, :, p:], rtol=1e-5, atol=1e-5)
    patches = torch.stack(softmaxes)[:, :, p:, p:]
    torch.testing.assert_close(walked.block_attention, patches[[0, 2]], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(walked.attention, patches[1:].mean(0), rtol=1e-5, atol=1e-6)
    for index, x in enumerate([tower.embed(pixels), *outputs[:-1]]):
        output, attention = tower.block_with_attention(index, x, walked.grid)
        torch.testing.assert_close(output, outputs[index], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(attention, softmaxes[index], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(attention.sum(-1), torch.ones(attention.shape[:2]))
        torch.testing.assert_close(mean_of(tower.opened(index, walked.grid), x), attention, rtol=1e-5, atol=1e-6)
    tail = tower.tail(walked.grid)
    activation = tail.normalise(walked.tokens_cls)
    opened_last = tower.opened(depth - 1, walked.grid)
    values_alone = opened_last.joined(opened_last.projected(walked.tokens_cls)[2])
    torch.testing.assert_close(values_alone[:, p:], tail.value_tokens(tail.patches(activation)), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(tail.output(walked.tokens_cls, activation), outputs[-1], rtol=1e-5, atol=1e-5)
    block: Any = twin.blocks[-1]
    alone = torch.full((activation.shape[1],) * 2, float("-inf")).fill_diagonal_(0.0)  # each token attends to itself
    rope = {} if isinstance(twin, VisionTransformer) else {"rope": last_rope(twin, walked.grid)}
    values = block.attn(activation, attn_mask=alone, **rope)
    torch.testing.assert_close(tail.value_tokens(activation), values, rtol=1e-5, atol=1e-5)


def mean_of(attention: OpenAttention, x: Tensor) -> Tensor:
    query, key, _ = attention.projected(x)
    return (query @ key.transpose(2, 3) / query.shape[-1] ** 0.5).softmax(dim=-1).mean(dim=1)


def last_rope(model: Any, grid: tuple[int, int]) -> Tensor:
    found = model.rope.get_embed(shape=grid)
    return found[-1] if model.rope_mixed else found


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config and a file of weights for every form."""
    folder = tmp_path_factory.mktemp("forms")
    for name in FORMS:
        write_clip(folder, name)
    return folder


def encoder(forms: Path, name: str, dtype: torch.dtype = torch.float32) -> ClipEncoder:
    weights = resolve_clip(str(forms / f"{name}.json"), str(forms / f"{name}.safetensors"))
    return ClipEncoder(build_clip(weights), torch.device("cpu"), dtype)


@pytest.mark.parametrize("name", ["vit-b-16", "vit-l-14"])
@torch.no_grad()
def test_blocks_and_attention_are_open_clips(forms: Path, name: str) -> None:
    clip = encoder(forms, name)
    visual = copy.deepcopy(clip.model)
    pixels = images(*visual.image_size)
    outputs: list[Tensor] = []
    for block in visual.transformer.resblocks:
        block.register_forward_hook(lambda _, __, out: outputs.append(out))
    pooled = visual(pixels)
    depth = len(clip.blocks)
    tokens = clip.encode(pixels, token_blocks=depth)
    torch.testing.assert_close(tokens.tokens_cls, outputs[-2], rtol=1e-5, atol=1e-5)
    for count in range(1, depth + 1):
        found = clip.encode(pixels, token_blocks=count).block_tokens
        torch.testing.assert_close(found, torch.stack(outputs)[:count, :, 1:], rtol=1e-5, atol=1e-5)
    for index, x in enumerate([clip.tower.embed(pixels), *outputs[:-1]]):
        output, attention = clip.tower.block_with_attention(index, x, tokens.grid)
        block = visual.transformer.resblocks[index]
        normed = block.ln_1(x)
        torch.testing.assert_close(output, outputs[index], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(attention, block.attn(normed, normed, normed)[1], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(attention.sum(-1), torch.ones(attention.shape[:2]))
        opened_one = clip.opened(tokens.grid)[index]
        torch.testing.assert_close(mean_of(opened_one, x), attention, rtol=1e-5, atol=1e-6)
        query, key, value = opened_one.projected(x)
        attended = (query @ key.transpose(2, 3) / query.shape[-1] ** 0.5).softmax(dim=-1) @ value
        torch.testing.assert_close(opened_one.joined(attended), block.attn(normed, normed, normed)[0], rtol=1e-5, atol=1e-5)
    for one, other in zip(clip.encode(pixels, inputs=True).inputs, [clip.tower.embed(pixels), *outputs[:-1]], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    tail = clip.tail(tokens.grid)
    output = tail.output(tokens.tokens_cls, tail.normalise(tokens.tokens_cls))
    torch.testing.assert_close(output, outputs[-1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(tail.project(output)[:, 0], pooled, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_cls_is_projected_as_eva_clip_projects_it(forms: Path) -> None:
    clip = encoder(forms, "eva02-clip")
    expected = copy.deepcopy(clip.model)(images())
    tokens = clip.encode(images())
    tail = clip.tail(tokens.grid)
    output = tail.output(tokens.tokens_cls, tail.normalise(tokens.tokens_cls))
    torch.testing.assert_close(tail.project(output)[:, 0], expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_patch_is_projected_as_siglip_pools_it_alone(forms: Path) -> None:
    clip = encoder(forms, "siglip2")
    trunk = trunk_of(clip.model)
    tokens = torch.randn(5, 1, 48)
    expected = clip.model.head(trunk.forward_head(trunk.norm(tokens)))
    torch.testing.assert_close(clip.tail((1, 1)).project(tokens)[:, 0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", FORMS)
def test_gradcam_through_every_tail(forms: Path, name: str) -> None:
    clip = encoder(forms, name)
    side = clip.patch_size
    pixels = images(3 * side, 5 * side)
    tokens = clip.encode(pixels, (0, 1))
    tail = clip.tail(tokens.grid)
    logits = cosine_logits(torch.eye(embed_dim(name))[:4], 20.0)
    present = torch.ones(2, 4, dtype=torch.bool)
    maps = softmax_gradcam(tokens.tokens_cls, tail.normalise, tail.features, tail.patches, logits, present, relu=False)
    assert maps.shape == (8, 15)
    assert (maps.std(dim=1) > 0).all()
    assert all(p.grad is None and not p.requires_grad for p in clip.model.parameters())
    half = encoder(forms, name, torch.bfloat16)
    low = half.tail(tokens.grid)
    found = softmax_gradcam(
        tokens.tokens_cls, low.normalise, low.features, low.patches, logits, present, relu=False, by_shift=True
    )  # the same tokens: only the products differ
    assert found.dtype == torch.float32
    assert 0 < (found - maps).norm() < 0.1 * maps.norm()
    found = half.encode(pixels, (0, 1))
    assert (found.tokens_cls.dtype, found.tokens_cls.shape[2]) == (torch.float32, clip.width)
    assert (found.tokens_cls - tokens.tokens_cls).norm() < 0.03 * tokens.tokens_cls.norm()
    assert found.attention is not None
    torch.testing.assert_close(found.attention, tokens.attention, rtol=0.1, atol=5e-3)


@pytest.mark.parametrize(
    "vision",
    [
        {"layers": [1, 1, 1, 1], "width": 16, "head_width": 16},
        {"layers": 1, "width": 32, "patch_size": 16, "head_width": 16, "attentional_pool": True, "attn_pooler_heads": 2},
        {"layers": 1, "width": 32, "patch_size": 16, "head_width": 16, "qk_norm": True},
        {"timm_model_name": "test_resnet", "timm_pool": "avg", "timm_proj": "linear"},
        {"timm_model_name": "test_vit", "timm_pool": "max", "timm_proj": "linear"},
        {"timm_model_name": "vit_tiny_r_s16_p8_224", "timm_pool": "token", "timm_proj": "linear"},
    ],
    ids=["ResNet", "CoCa", "norms of queries", "timm ResNet", "max pooling", "convolutions before the patches"],
)
def test_other_towers_are_refused_in_one_line(tmp_path: Path, vision: dict[str, Any]) -> None:
    text = {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1}
    path = tmp_path / "other.json"
    path.write_text(json.dumps({"embed_dim": 32, "vision_cfg": {"image_size": SIDE, **vision}, "text_cfg": text}))
    save_file({"visual.x": torch.zeros(1)}, tmp_path / "w.safetensors")
    with pytest.raises(UsageError, match="form that no adapter opens: expected open_clip's ViT, timm's ViT, timm's Eva"):
        build_clip(resolve_clip(str(path), str(tmp_path / "w.safetensors")))
