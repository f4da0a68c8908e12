"""Models described by files: open_clip's and timm's own forms, and what is not one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import open_clip
import pytest
import timm
import torch
from safetensors.torch import save_file

from pipelines.encoders.dino import DinoEncoder
from pipelines.encoders.model_config import clip_name, dino_architecture
from pipelines.encoders.text import encode_prompts
from pipelines.encoders.weights import build_clip, build_dino, resolve_clip, resolve_dino
from pipelines.errors import SsrError, UsageError

CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
DINO = {
    "architecture": "vit_tiny_patch16_224",
    "model_args": {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2},
    "pretrained_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]},
}


def write(path: Path, content: object) -> str:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return str(path)


@pytest.fixture
def clip_files(tmp_path: Path) -> tuple[str, str]:
    config = write(tmp_path / "own-clip.json", CLIP)
    open_clip.add_model_config(config)
    model = open_clip.create_model("own-clip", pretrained=None, load_weights=False)
    weights = tmp_path / "own-clip.safetensors"
    save_file({k: v.contiguous() for k, v in model.state_dict().items() if k != "attn_mask"}, weights)
    return config, str(weights)


@pytest.fixture
def dino_files(tmp_path: Path) -> tuple[str, str]:
    model = timm.create_model(DINO["architecture"], num_classes=0, **DINO["model_args"])
    weights = tmp_path / "own-dino.safetensors"
    save_file(model.state_dict(), weights)
    return write(tmp_path / "own-dino.json", DINO), str(weights)


def test_clip_of_a_file_is_named_after_it_and_embeds_words(clip_files: tuple[str, str]) -> None:
    loaded = build_clip(resolve_clip(*clip_files))
    assert loaded.weights.name == "own-clip"
    assert loaded.has_text
    assert loaded.model.visual.patch_size == (8, 8)
    bank = encode_prompts(loaded, ["cat", "dog"], ["cat", "dog"], "a {}.")
    assert bank.embeddings.shape == (2, 16)
    assert bank.model == "own-clip"


def test_dino_of_a_file_has_its_shape_and_its_normalisation(dino_files: tuple[str, str]) -> None:
    encoder = DinoEncoder(resolve_dino(*dino_files), torch.device("cpu"))
    assert encoder.patch_size == 8
    assert encoder.mean == (0.1, 0.2, 0.3)
    assert encoder.std == (0.4, 0.5, 0.6)
    assert encoder.encode(torch.zeros(1, 3, 40, 24), [1]).tokens.shape == (1, 15, 24)


def test_provenance_knows_the_description_too(clip_files: tuple[str, str], tmp_path: Path) -> None:
    before = resolve_clip(*clip_files).provenance()
    other = {**CLIP, "vision_cfg": {**CLIP["vision_cfg"], "head_width": 32}}  # same tensors, another model
    write(tmp_path / "own-clip.json", other)
    after = resolve_clip(*clip_files).provenance()
    assert before["model"] == after["model"] == "own-clip"
    assert before["weights"] == after["weights"]
    assert before["config"] != after["config"]


BAD: dict[str, tuple[Callable[[str], object], object, str]] = {
    "no CLIP": (clip_name, None, "no model config at"),
    "CLIP: not JSON": (clip_name, "{", "is not JSON"),
    "CLIP: a list": (clip_name, [], "is not an open_clip model config"),
    "CLIP: timm's": (clip_name, DINO, "is not an open_clip model config: expected embed_dim, text_cfg, vision_cfg"),
    "no DINO": (dino_architecture, None, "no model config at"),
    "DINO: nesting": (dino_architecture, "[" * 100_000, "is not JSON"),
    "DINO: open_clip's": (dino_architecture, CLIP, "is not a timm config.json: expected architecture"),
    "DINO: unknown": (dino_architecture, {"architecture": "vit_none"}, "timm has no model 'vit_none'"),
    "DINO: odd": (dino_architecture, {"architecture": 3}, "is not a timm config.json"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_one_line(name: str, tmp_path: Path) -> None:
    read, content, message = BAD[name]
    if content is not None:
        write(tmp_path / "x.json", content)
    with pytest.raises(UsageError, match=message):
        read(str(tmp_path / "x.json"))


def test_numbers_that_no_model_has_are_one_line(
    clip_files: tuple[str, str], dino_files: tuple[str, str], tmp_path: Path
) -> None:
    odd_clip = write(tmp_path / "odd.json", {**CLIP, "vision_cfg": {"no_such_thing": 1}})
    with pytest.raises(SsrError, match=r"cannot build .*odd\.json"):
        build_clip(resolve_clip(odd_clip, clip_files[1]))
    odd_dino = write(tmp_path / "odd.json", {**DINO, "model_args": {"embed_dim": 25, "num_heads": 2}})
    with pytest.raises(SsrError, match=r"cannot build .*odd\.json"):
        build_dino(resolve_dino(odd_dino, dino_files[1]))


def test_a_described_dino_needs_a_weights_file(dino_files: tuple[str, str]) -> None:
    with pytest.raises(UsageError, match="its weights must be a file"):
        resolve_dino(dino_files[0], "hub")
