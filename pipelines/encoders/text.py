"""Class embeddings from open_clip's text tower or from a text bank.

A text bank is a safetensors file with ``embeddings`` (M, D), L2-normalised fp32, and the metadata ``names`` (JSON list),
``model``, ``pretrained`` and ``template``. It replaces the text tower, so that no tokenizer and no 250 MB of weights are
needed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
        names: Name of each row.
        model: open_clip model name of the tower that made them.
        pretrained: Tag of its weights.
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
        model: CLIP model that made the bank; a bank of another activation of the same architecture is refused too.

    Raises:
        UsageError: The file is missing, or the bank is of another model.
        SsrError: The file is no text bank, or is damaged.
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
    except Exception as error:  # safetensors and torch raise several types for a bad header
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
    """Write a text bank; a failure leaves no partial file."""
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
    """Embed prompts with the text tower and L2-normalise them.

    Args:
        clip: A CLIP with its text tower.
        names: Names of the rows.
        prompts: Text for each name in the template; synonyms go into one prompt (CLIP-ES).
        template: Prompt template, such as ``a clean origami {}.``

    Raises:
        UsageError: The weights hold no text tower, or two prompts have the same tokens.
    """
    if not clip.has_text:
        raise UsageError(
            f"{clip.weights.pretrained} holds the image tower alone: class embeddings must come from a bank",
            "--text-bank and --background-bank",
        )
    tokens = _tokenizer(clip)([template.format(prompt) for prompt in prompts])  # (M, L)
    twins = _twins(tokens)
    if twins is not None:
        first, second = (names[index] for index in twins)
        found = f"the prompts of {first!r:.60} and {second!r:.60} are the same up to the last of {tokens.shape[1]} tokens"
        raise UsageError(f"CLIP cannot tell two words apart: {found}", "shorter prompts, or prompts that differ early")
    embeddings = F.normalize(clip.model.encode_text(tokens).float(), dim=1)  # (M, D)
    return TextBank(embeddings, tuple(names), clip.weights.name, clip.weights.pretrained, template)


def token_counts(clip: LoadedClip, prompts: Sequence[str], template: str) -> tuple[list[int], int]:
    """Return the number of tokens of each prompt in its template, or [] if unknown, and the limit of the text tower.

    Raises:
        SsrError: The tokenizer cannot be loaded.
    """
    tokenizer = _tokenizer(clip)
    encode = getattr(tokenizer, "encode", None)
    length = int(getattr(tokenizer, "context_length", 0) or 0)
    if encode is None or not length:
        return [], length
    return [len(encode(template.format(prompt))) + 2 for prompt in prompts], length  # two more for start and end


def _tokenizer(clip: LoadedClip) -> Any:
    import open_clip

    try:
        return open_clip.get_tokenizer(clip.weights.name)
    except Exception as error:  # SigLIP's is a file on the hub for a library that may be missing
        raise SsrError(
            f"cannot load the tokenizer of {clip.weights.name}: {first_line(error)}",
            "pip install transformers and sentencepiece, or give --text-bank and --background-bank",
        ) from error


def _twins(tokens: Tensor) -> tuple[int, int] | None:
    """Return the first two equal rows of ``(M, L)``, or None."""
    seen: dict[bytes, int] = {}
    for index, row in enumerate(tokens):
        first = seen.setdefault(row.numpy().tobytes(), index)
        if first != index:
            return first, index
    return None
