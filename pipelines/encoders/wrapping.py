"""Conversion of weights from the names of trainings and of other libraries to the names of the model."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor

from pipelines.errors import UsageError

State = dict[str, Tensor]
_WITHIN = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""Names that torch.compile and FSDP insert between those of modules."""
_CHUNKED = re.compile(r"^(.*\bblocks)\.\d+\.(\d+)\.(.+)$")
_ENOUGH = 0.5
"""Share of the model's names from which a file counts as one of the model: a message then lists the missing names."""


def unwrapped(state: State, own: Collection[str], path: Path, flag: str) -> State:
    """Change the names of a file to those of a model.

    Supported are names that torch.compile and FSDP add, one prefix of any depth, chunks of DINOv2's blocks, and the names of
    Hugging Face's CLIP, ViT and DINOv2. A teacher is preferred to its student, as in DINO's own evaluation.

    Args:
        state: Named tensors of a file, nested tables joined by ``.``.
        own: Names of the model.
        path: The file, for messages.
        flag: Flag that gave the file.

    Returns:
        The tensors under the model's names, and others; names of an unrelated file stay unchanged.

    Raises:
        UsageError: Several parts of the file fit equally well, or its names are those of an unsupported library.
    """
    for candidate in (state, _plain(state)):
        prefix = _prefix(candidate, own, path, flag)
        if prefix is not None:
            return _cut(candidate, prefix)
    converted = hugging_face(_plain(state))
    if converted is not None:
        prefix = _prefix(converted, own, path, flag)
        if prefix is not None:
            return _cut(converted, prefix)
    for mark, library in _OTHERS.items():
        if any(mark in name for name in state):
            hint = "convert it to the names of open_clip (CLIP) or timm (DINO), e.g. with the script of that library"
            raise UsageError(f"{path} has {library} names ({next(n for n in state if mark in n):.80})", f"{hint}; {flag}")
    return state


_OTHERS = {
    "layers.0.ln1.": "mmpretrain's",
    "layers.0.attn.attn.": "mmpretrain's",
    "transformer.encoderblock": "JAX's",
}
"""Parts of unsupported names, and the library that uses them."""


def _plain(state: State) -> State:
    """Remove the names that wrappers add, and number the blocks in DINOv2's chunks without their chunk."""
    named = {_WITHIN.sub("", name): tensor for name, tensor in state.items()}
    blocks = [name for name in named if re.search(r"\bblocks\.\d", name)]
    if blocks and all(_CHUNKED.match(name) for name in blocks):
        named = {_CHUNKED.sub(r"\1.\2.\3", name): tensor for name, tensor in named.items()}
    return named


def _prefix(state: State, own: Collection[str], path: Path, flag: str) -> str | None:
    """Return the prefix before most of the model's names; None if no prefix has enough of them."""
    known = set(own)
    counts: Counter[str] = Counter()
    for name in state:
        start = 0
        while start >= 0:  # each suffix begins at a dot
            if name[start:] in known:
                counts[name[:start]] += 1
            start = name.find(".", start) + 1 or -1
    if not counts or max(counts.values()) < _ENOUGH * len(known):
        return None
    best = sorted(prefix for prefix, count in counts.items() if count == max(counts.values()))
    if "" in best:
        return ""
    if all("teacher" in prefix or "student" in prefix for prefix in best):
        best = [prefix for prefix in best if "teacher" in prefix] or best
    first = _cut(state, best[0])
    for other in best[1:]:
        second = _cut(state, other)
        if any(name in known and not torch.equal(first[name], second[name]) for name in first.keys() & second.keys()):
            found = ", ".join(repr(prefix) for prefix in best)
            one = f'{{n.removeprefix("{best[0]}"): t for n, t in state.items() if n.startswith("{best[0]}")}}'
            raise UsageError(f"{path} holds several models that fit, under {found:.200}", f"save one, save_file({one}); {flag}")
    return best[0]


def _cut(state: State, prefix: str) -> State:
    return {name[len(prefix) :]: tensor for name, tensor in state.items() if name.startswith(prefix)} if prefix else state


_CLIP_TABLES = {
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
}
_CLIP_PARTS = (
    (r"^vision_model\.pre_layrnorm\.", "visual.ln_pre."),
    (r"^vision_model\.post_layernorm\.", "visual.ln_post."),
    (r"^text_model\.final_layer_norm\.", "ln_final."),
    (r"^vision_model\.encoder\.layers\.", "visual.transformer.resblocks."),
    (r"^text_model\.encoder\.layers\.", "transformer.resblocks."),
    (r"\.layer_norm(\d)\.", r".ln_\1."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
    (r"\.self_attn\.out_proj\.", ".attn.out_proj."),
    (r"\.self_attn\.([qkv])_proj\.(weight|bias)$", r".attn.in_proj_\2|\1"),
)
_VIT_PARTS = (
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.(cls_token|mask_token|register_tokens)$", r"\1"),
    (r"^layernorm\.", "norm."),
    (r"^encoder\.layer\.", "blocks."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.layer_scale(\d)\.lambda1$", r".ls\1.gamma"),
    (r"\.attention\.attention\.(q|k|v)[a-z]+\.(weight|bias)$", r".attn.qkv.\2|\1"),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"(?<!attention)\.output\.dense\.", ".mlp.fc2."),
)


def hugging_face(state: Mapping[str, Tensor]) -> State | None:
    """Return a Hugging Face CLIP under open_clip's names, or its ViT or DINOv2 under those of DINO's authors; else None."""
    clip = next((name for name in state if name.endswith("vision_model.embeddings.class_embedding")), None)
    vit = next((name for name in state if name.endswith("embeddings.patch_embeddings.projection.weight")), None)
    if clip is not None:
        prefix = clip.removesuffix("vision_model.embeddings.class_embedding")
        return _renamed(_cut(dict(state), prefix), _CLIP_PARTS)
    if vit is not None:
        prefix = vit.removesuffix("embeddings.patch_embeddings.projection.weight")
        return _renamed(_cut(dict(state), prefix), _VIT_PARTS)
    return None


def _renamed(state: State, parts: Collection[tuple[str, str]]) -> State:
    """Rename tensors; queries, keys and values (``NAME|q``) become one tensor."""
    found: State = {}
    packed: dict[str, dict[str, Tensor]] = {}
    for old, tensor in state.items():
        name = _CLIP_TABLES.get(old, old)
        for pattern, new in parts:
            name = re.sub(pattern, new, name)
        if name in {"visual_projection.weight", "text_projection.weight"}:
            found["visual.proj" if name.startswith("visual") else "text_projection"] = tensor.T.contiguous()
            continue
        name, _, part = name.partition("|")
        if part:
            packed.setdefault(name, {})[part] = tensor
        else:
            found[name] = tensor
    for name, tensors in packed.items():
        if tensors.keys() == {"q", "k", "v"}:
            found[name] = torch.cat([tensors["q"], tensors["k"], tensors["v"]])
    return found
