"""Class embeddings: from open_clip's text tower, or from a text bank.

A text bank is a safetensors file with ``embeddings`` (M, D), L2-normalised fp32, and the metadata ``names`` (JSON list),
``model``, ``pretrained`` and ``template``. It stands in for the text tower: no tokenizer, no 250 MB of weights.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from pipelines.encoders.weights import LoadedClip
from pipelines.encoders.weights_folder import first_line
from pipelines.errors import SsrError, UsageError
from pipelines.stores.files import atomic_path


@dataclass(frozen=True)
class TextBank:
    """Embeddings of class names or background words.

    Attributes:
        embeddings: ``(M, D)`` fp32, L2-normalised.
        names: One a row.
        model: open_clip model name of the tower that made them.
        pretrained: Its tag.
        template: Prompt template, ``{}`` for the name.
    """

    embeddings: Tensor
    names: tuple[str, ...]
    model: str
    pretrained: str
    template: str


def read_bank(path: Path, model: str | None = None) -> TextBank:
    """Read and check a text bank.

    Args:
        path: The ``.safetensors`` file.
        model: CLIP model that it must belong to; a bank of another activation of the same architecture is refused too.

    Raises:
        UsageError: Missing file, or a bank of another model.
        SsrError: Not a text bank, or damaged.
    """
    if not path.is_file():
        raise UsageError(f"no text bank at {path}", "--text-bank, --background-bank")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            embeddings = file.get_tensor("embeddings")
        if not embeddings.is_floating_point():
            raise TypeError(embeddings.dtype)
        embeddings = embeddings.float()
        names = json.loads(metadata["names"])
    except Exception as error:  # safetensors and torch have more than one way to refuse a header
        raise SsrError(
            f"{path} is not a text bank: expected `embeddings` and the metadata `names`", "`ssr text` writes one"
        ) from error
    named = isinstance(names, list) and all(isinstance(name, str) for name in names)
    if not named or embeddings.ndim != 2 or not 0 < len(names) == len(embeddings) or not torch.isfinite(embeddings).all():
        raise SsrError(
            f"{path}: expected finite (M, D) embeddings and M names, found {tuple(embeddings.shape)} and {names!r:.60}"
        )
    if len(set(names)) != len(names):
        raise SsrError(f"{path}: names are not unique")
    if (embeddings.norm(dim=1) - 1).abs().max() > 1e-2:
        raise SsrError(f"{path}: embeddings are not L2-normalised", "`ssr text` writes normalised ones")
    bank = TextBank(
        F.normalize(embeddings, dim=1),
        tuple(names),
        metadata.get("model", ""),
        metadata.get("pretrained", ""),
        metadata.get("template", ""),
    )
    if model is not None and bank.model and bank.model != model:
        raise UsageError(f"{path} was made by {bank.model}, the CLIP here is {model}", "--text-bank or --clip-model")
    return bank


def write_bank(path: Path, bank: TextBank) -> None:
    """Write a text bank, whole or not at all."""
    metadata = {
        "names": json.dumps(list(bank.names)),
        "model": bank.model,
        "pretrained": bank.pretrained,
        "template": bank.template,
    }
    with atomic_path(path) as temporary:
        temporary.write_bytes(save({"embeddings": bank.embeddings.contiguous()}, metadata))


@torch.inference_mode()
def encode_prompts(clip: LoadedClip, names: Sequence[str], prompts: Sequence[str], template: str) -> TextBank:
    """Embed prompts with the text tower: encode, L2-normalise.

    Args:
        clip: A CLIP with its text tower.
        names: Names of the rows.
        prompts: What stands for each name in the template; synonyms go into one prompt (CLIP-ES).
        template: Such as ``a clean origami {}.``

    Raises:
        UsageError: The weights hold no text tower.
    """
    if not clip.has_text:
        raise UsageError(
            f"{clip.weights.pretrained} holds the image tower alone: class embeddings must come from a bank",
            "--text-bank and --background-bank",
        )
    import open_clip

    try:
        tokenizer = open_clip.get_tokenizer(clip.weights.name)
    except Exception as error:  # SigLIP's is a file on the hub, read by a library that may be missing
        raise SsrError(
            f"cannot have the tokenizer of {clip.weights.name}: {first_line(error)}",
            "pip install transformers and sentencepiece, or give --text-bank and --background-bank",
        ) from error
    tokens = tokenizer([template.format(prompt) for prompt in prompts])  # (M, L)
    embeddings = F.normalize(clip.model.encode_text(tokens).float(), dim=1)  # (M, D)
    return TextBank(embeddings, tuple(names), clip.weights.name, clip.weights.pretrained, template)
