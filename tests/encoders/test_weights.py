from __future__ import annotations

import argparse
import hashlib
import re
from pathlib import Path
from types import SimpleNamespace

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipelines.encoders import weights as weights_module
from pipelines.encoders.weights import Weights, build_clip, build_dino, check_clip, check_dino, resolve_clip, resolve_dino
from pipelines.encoders.weights_folder import Release
from pipelines.errors import SsrError, UsageError

State = dict[str, Tensor]
QUICK = "tiny-clip-quickgelu"


def _build(path: Path, model: str = QUICK) -> weights_module.LoadedClip:
    return build_clip(resolve_clip(model, str(path)))


def _save(path: Path, state: State) -> Path:
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


def _visual(state: State) -> State:
    return {name: tensor for name, tensor in state.items() if name.startswith("visual.")}


def _bare(state: State) -> State:
    return {name.removeprefix("visual."): tensor for name, tensor in _visual(state).items()}


# --- names and tags, nothing is loaded


def test_a_tag_is_taken_as_it_is() -> None:
    assert resolve_clip("ViT-B-16-quickgelu", "openai") == Weights("ViT-B-16-quickgelu", "openai")
    assert resolve_clip("ViT-B-16", "laion2b_s34b_b88k").provenance() == {"model": "ViT-B-16", "weights": "laion2b_s34b_b88k"}


@pytest.mark.parametrize(
    ("model", "tag", "mended"),
    [
        ("ViT-B-16", "openai", "ViT-B-16-quickgelu"),
        ("ViT-L-14", "openai", "ViT-L-14-quickgelu"),
        ("ViT-B-16", "metaclip_400m", "ViT-B-16-quickgelu"),
    ],
)
def test_another_activation_is_refused_with_the_right_name(model: str, tag: str, mended: str) -> None:
    with pytest.raises(UsageError, match=f"tag '{tag}' was trained with QuickGELU, model {model} computes GELU") as caught:
        check_clip(resolve_clip(model, tag))
    assert caught.value.hint == f"--clip-model {mended}"
    assert check_clip(resolve_clip(mended, tag)) == mended


def test_unknown_names() -> None:
    with pytest.raises(UsageError, match="open_clip has no model 'ViT-Z-99'"):
        check_clip(resolve_clip("ViT-Z-99", "openai"))
    with pytest.raises(UsageError, match=r"no weights 'nope' for ViT-B-16-quickgelu \(it has: .*openai") as caught:
        check_clip(resolve_clip("ViT-B-16-quickgelu", "nope"))
    assert caught.value.hint == "--clip-pretrained"
    with pytest.raises(UsageError, match="timm has no model 'vit_nope'"):
        check_dino(resolve_dino("vit_nope", "hub"))
    with pytest.raises(UsageError, match=r"no weights of vit_small_patch16_224\.nope \(it has: .*vit_small_patch16_224\.dino"):
        check_dino(resolve_dino("vit_small_patch16_224.nope", "hub"))
    with pytest.raises(UsageError, match=r"no weights of vit_small_patch16_36x1_224 \(it has: none\)"):
        check_dino(resolve_dino("vit_small_patch16_36x1_224", "hub"))
    check_dino(resolve_dino("vit_small_patch16_224.dino", "hub"))
    assert resolve_dino("vit_small_patch16_224.dino", "hub") == Weights("vit_small_patch16_224.dino", "hub")


@pytest.mark.parametrize("model", ["local-dir:/nowhere", "local-dir:"])
def test_names_with_a_scheme(model: str) -> None:
    with pytest.raises(SsrError):
        check_clip(resolve_clip(model, "openai"))


@pytest.mark.parametrize("name", ["absent.safetensors", "some/folder", "x.pt", "."])
def test_missing_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    expected = "no weights at" if name != "." else "has no weights"
    with pytest.raises(UsageError, match=expected):
        check_clip(resolve_clip("ViT-B-16-quickgelu", name))
    if name != ".":
        with pytest.raises(UsageError, match=r"no weights at .*--dino-pretrained"):
            resolve_dino("test_vit", name)


def test_a_file_is_known_by_its_checksum(clip_file: Path) -> None:
    weights = resolve_clip(QUICK, str(clip_file))
    expected = hashlib.sha256(clip_file.read_bytes()).hexdigest()
    assert weights.provenance() == {"model": QUICK, "weights": f"sha256:{expected}"}


# --- CLIP files


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize(("part", "has_text"), [("all", True), ("module", True), ("visual", False), ("bare", False)])
def test_files_with_and_without_text_tower(tmp_path: Path, clip_state: State, suffix: str, part: str, has_text: bool) -> None:
    state = {
        "all": clip_state,
        "module": {f"module.{name}": tensor for name, tensor in clip_state.items()},
        "visual": _visual(clip_state),
        "bare": _bare(clip_state),
    }[part]
    clip = _build(_save(tmp_path / f"w{suffix}", state))
    assert clip.has_text == has_text
    own = clip.model.state_dict()
    for name, tensor in clip_state.items():
        if has_text or name.startswith("visual."):
            assert torch.equal(own[name], tensor)
    assert clip.model.logit_scale.exp().item() == pytest.approx(20.0855 if has_text else 100.0, rel=1e-4)
    assert own["visual.proj"].dtype == torch.float32


def test_half_precision_file_and_checkpoint_of_a_training(tmp_path: Path, clip_state: State) -> None:
    half = {name: tensor.half() for name, tensor in clip_state.items()}
    torch.save({"epoch": 3, "state_dict": half}, tmp_path / "w.pt")
    clip = _build(tmp_path / "w.pt")
    assert clip.model.visual.proj.dtype == torch.float32
    torch.testing.assert_close(clip.model.visual.proj.detach(), clip_state["visual.proj"].half().float(), rtol=0, atol=0)


def test_the_tower_of_a_known_quick_gelu_model(clip_file: Path, clip_state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    fingerprint = hashlib.sha256(clip_state["visual.class_embedding"].half().numpy().tobytes()).hexdigest()
    monkeypatch.setattr(weights_module, "_QUICK_GELU_TOWERS", {fingerprint: "the known tower"})
    with pytest.raises(UsageError, match=r"the known tower in full\.safetensors was trained with QuickGELU") as caught:
        _build(clip_file, "tiny-clip")
    assert caught.value.hint == f"--clip-model {QUICK}"
    assert _build(clip_file, QUICK).has_text
    monkeypatch.setattr(weights_module, "_QUICK_GELU_TOWERS", {})
    assert _build(clip_file, "tiny-clip").has_text


@pytest.mark.parametrize("name", ["visual.proj", "visual.transformer.resblocks.2.mlp.c_fc.bias", "visual.positional_embedding"])
def test_wrong_shape_or_missing_tensor(tmp_path: Path, clip_state: State, name: str) -> None:
    shape = tuple(clip_state[name].shape)
    path = _save(tmp_path / "w.safetensors", {**clip_state, name: torch.zeros(3, 5)})
    with pytest.raises(UsageError, match=re.escape(f"does not fit {QUICK}: it has {name} of shape (3, 5), not {shape}")):
        _build(path)
    path = _save(tmp_path / "w.safetensors", {n: t for n, t in clip_state.items() if n != name})
    with pytest.raises(UsageError, match=f"does not fit {QUICK}: it lacks {name}"):
        _build(path)


@pytest.mark.parametrize("name", ["ln_final.weight", "transformer.resblocks.0.ln_1.bias", "text_projection"])
def test_half_a_text_tower(tmp_path: Path, clip_state: State, name: str) -> None:
    path = _save(tmp_path / "w.safetensors", {n: t for n, t in clip_state.items() if n != name})
    try:
        assert not _build(path).has_text
    except UsageError as error:
        assert name in str(error)  # noqa: PT017


@pytest.mark.parametrize("keep", [0, 4, 0.01, 0.5, 0.999])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_truncated_file(tmp_path: Path, clip_state: State, suffix: str, keep: float) -> None:
    path = _save(tmp_path / f"w{suffix}", _bare(clip_state))
    content = path.read_bytes()
    path.write_bytes(content[: keep if isinstance(keep, int) else int(keep * len(content))])
    with pytest.raises(SsrError) as caught:
        _build(path)
    assert "\n" not in str(caught.value)
    assert "safetensors" in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"a": torch.zeros(2)},
        torch.zeros(3),
        [1, 2],
        {1: torch.zeros(2)},
        {"visual.class_embedding": 3.0},
        {"state_dict": None},
    ],
    ids=str,
)
def test_file_without_weights(tmp_path: Path, tiny_folder: Path, content: object) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(SsrError):
        _build(tmp_path / "w.pt")


# --- DINO files


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_dino_file_with_a_classifier_of_its_own(tmp_path: Path, dino_file: Path, suffix: str) -> None:
    state = load_file(dino_file)
    model = build_dino(resolve_dino("test_vit", str(_save(tmp_path / f"w{suffix}", state))))
    own = model.state_dict()
    assert not any(name.startswith("head.") for name in own)
    assert all(torch.equal(tensor, state[name]) for name, tensor in own.items())


@pytest.mark.parametrize("name", ["norm.bias", "cls_token", "blocks.0.attn.qkv.weight", ""])
def test_dino_file_that_lacks_tensors(tmp_path: Path, dino_file: Path, name: str) -> None:
    state = load_file(dino_file)
    state = {n: t for n, t in state.items() if n != name} if name else {f"x{n}": t for n, t in state.items()}
    with pytest.raises(SsrError, match=name or "lacks|does not fit"):
        build_dino(resolve_dino("test_vit", str(_save(tmp_path / "w.safetensors", state))))


# --- other wrapping and other names


def _plus(prefix: str, state: State) -> State:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def _apart(state: State, packed: str, names: str) -> State:
    """Queries, keys and values apart: ``packed`` is their name in one, ``names`` that of each."""
    found: State = {}
    for name, tensor in state.items():
        head, mark, kind = name.rpartition(packed)
        if mark:
            for part, piece in zip(("q", "k", "v"), tensor.chunk(3), strict=True):
                found[head + names.format(part, {"q": "query", "k": "key", "v": "value"}[part]) + kind] = piece.contiguous()
        else:
            found[name] = tensor
    return found


def _as_hugging_face_clip(state: State) -> State:
    found: State = {}
    for name, tensor in _apart(state, ".attn.in_proj_", ".self_attn.{0}_proj.").items():
        tower = "vision_model" if name.startswith("visual.") else "text_model"
        plain = name.removeprefix("visual.").replace("transformer.resblocks", "encoder.layers")
        for ours, theirs in {
            "ln_pre": "pre_layrnorm", "ln_post": "post_layernorm", "ln_final": "final_layer_norm", "ln_1": "layer_norm1",
            "ln_2": "layer_norm2", "c_fc": "fc1", "c_proj": "fc2", "attn.out_proj": "self_attn.out_proj",
            "conv1": "embeddings.patch_embedding", "class_embedding": "embeddings.class_embedding",
            "positional_embedding": "embeddings.position_embedding.weight", "token_embedding": "embeddings.token_embedding",
        }.items():  # fmt: skip
            plain = plain.replace(ours, theirs) if f"self_{ours}" not in plain else plain
        match plain:
            case "proj" | "text_projection":
                key = "visual_projection" if plain == "proj" else plain
                found[f"{key}.weight"] = tensor.T.contiguous()
            case "logit_scale" | "attn_mask":
                found[plain] = tensor
            case _:
                found[f"{tower}.{plain}"] = tensor
    return found


def _as_hugging_face_vit(state: State) -> State:
    found: State = {}
    for name, tensor in _apart(state, ".attn.qkv.", ".attention.attention.{1}.").items():
        for ours, theirs in {
            "patch_embed.proj": "embeddings.patch_embeddings.projection", "pos_embed": "embeddings.position_embeddings",
            "cls_token": "embeddings.cls_token", "blocks": "encoder.layer", "norm1": "layernorm_before",
            "norm2": "layernorm_after", "attn.proj": "attention.output.dense", "mlp.fc1": "intermediate.dense",
            "mlp.fc2": "output.dense", "norm.": "layernorm.",
        }.items():  # fmt: skip
            name = name.replace(ours, theirs)
        found[name] = tensor
    return found


def _chunked(state: State) -> State:
    return {re.sub(r"^blocks\.(\d+)\.", lambda found: f"blocks.0.{found[1]}.", name): tensor for name, tensor in state.items()}


OTHER_FORMS = {
    # how people have it: from the plain state
    "a training": lambda state: {"model": state, "epoch": 3, "optimizer": {"state": {0: {"step": torch.ones(1)}}}},
    "lightning": lambda state: {"state_dict": _plus("model.", state), "hyper_parameters": {"lr": 1.0}},
    "compiled": lambda state: {"model": _plus("_orig_mod.", state)},
    "compiled and parallel": lambda state: _plus("module._orig_mod.", state),
    "an arguments' namespace": lambda state: {"net": state, "args": argparse.Namespace(lr=1)},
    "of DINO": lambda state: {
        "student": _plus("module.backbone.", {name: tensor + 1 for name, tensor in state.items()}),
        "teacher": _plus("backbone.", state) | {"head.mlp.0.weight": torch.ones(2, 2)},
    },
}
CLIP_FORMS = OTHER_FORMS | {
    "Hugging Face": _as_hugging_face_clip,
    "in a larger model": lambda s: _plus("image_encoder.", _bare(s)),
}
DINO_FORMS = OTHER_FORMS | {
    "Hugging Face": _as_hugging_face_vit,
    "Hugging Face, in a model": lambda state: _plus("vit.", _as_hugging_face_vit(state)),
    "chunks of blocks": _chunked,
}


@pytest.mark.parametrize("form", CLIP_FORMS)
def test_a_clip_in_another_form_has_the_numbers_of_the_plain_file(tmp_path: Path, clip_state: State, form: str) -> None:
    torch.save(CLIP_FORMS[form](clip_state), tmp_path / "w.pt")
    clip = _build(tmp_path / "w.pt")
    own = clip.model.state_dict()
    assert clip.has_text == (form != "in a larger model")
    assert all(torch.equal(own[name], tensor) for name, tensor in clip_state.items() if clip.has_text or "visual." in name)


@pytest.mark.parametrize("form", DINO_FORMS)
def test_a_dino_in_another_form_has_the_numbers_of_the_plain_file(tmp_path: Path, dino_file: Path, form: str) -> None:
    state = {name: tensor for name, tensor in load_file(dino_file).items() if not name.startswith("head.")}
    torch.save(DINO_FORMS[form](state), tmp_path / "w.pth")
    own = build_dino(resolve_dino("test_vit", str(tmp_path / "w.pth"))).state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in own.items())


def test_two_models_in_one_file_are_named(tmp_path: Path, clip_state: State) -> None:
    other = {name: tensor + 1 for name, tensor in clip_state.items()}
    torch.save({"model": clip_state, "model_ema": other}, tmp_path / "w.pt")
    with pytest.raises(UsageError, match=r"several models that fit, under 'model\.', 'model_ema\.' .*save one"):
        _build(tmp_path / "w.pt")
    torch.save({"backbone.layers.0.ln1.weight": torch.ones(2)}, tmp_path / "w.pt")
    with pytest.raises(UsageError, match=r"has mmpretrain's names \(backbone\.layers\.0\.ln1\.weight\)"):
        _build(tmp_path / "w.pt")


def test_a_torchscript_archive(tmp_path: Path, clip_state: State, clip_file: Path) -> None:
    """As OpenAI releases its CLIPs; nothing of its code is run."""
    model = _build(clip_file).model.visual.half()
    inputs = torch.zeros(1, 3, 32, 32, dtype=torch.float16)
    torch.jit.trace(model, inputs, check_trace=False).save(str(tmp_path / "ViT.pt"))
    built = _build(tmp_path / "ViT.pt").model.state_dict()
    assert all(torch.equal(built[name], tensor.half().float()) for name, tensor in _visual(clip_state).items())


# --- the hub: see test_weights_folder.py


def test_the_hub_is_asked_for_tensors_only(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, object] = {}

    def create_model(name: str, **options: object) -> SimpleNamespace:
        asked.update(options, name=name)
        return SimpleNamespace(visual=SimpleNamespace())

    monkeypatch.setattr(open_clip, "create_model", create_model)
    monkeypatch.setattr(Release, "cached", lambda _: Path("cached.bin"))
    loaded = build_clip(Weights("ViT-B-16-quickgelu", "openai"))
    assert loaded.has_text
    assert asked == {"name": "ViT-B-16-quickgelu", "pretrained": "cached.bin", "weights_only": True}


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".pth"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "expected weights, found an empty file (download it again, or"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n",
            "found a pointer of Git LFS in place of the file (git lfs",
        ),
        (b"\n<!DOCTYPE html><html>", "found a web page (download the file itself"),
        (b"\x1f\x8b\x08\0", "found a gzip archive (unpack it first)"),
    ],
)
def test_what_a_download_left_in_place_of_weights_is_named(tmp_path: Path, content: bytes, said: str, suffix: str) -> None:
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    with pytest.raises(SsrError) as caught:
        _build(path)
    assert said in str(caught.value)
