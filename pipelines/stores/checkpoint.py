"""Trained parameters as safetensors with a JSON note inside: nothing that could execute, whole or not at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from pipelines.errors import UsageError
from pipelines.stores.files import atomic_path

CHECKSUM = "sha256"
"""Key of the note that a file's checksum has; whoever reads the note does not see it."""


def write_checkpoint(path: Path, tensors: Mapping[str, Tensor], note: Mapping[str, Any]) -> None:
    """Write tensors and a JSON note.

    Args:
        path: A ``.safetensors`` file; its folder is made.
        tensors: By name.
        note: What the tensors belong to; anything JSON holds.
    """
    with atomic_path(path) as temporary:
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        told = {key: value for key, value in note.items() if key != CHECKSUM}  # of a note that was read elsewhere
        noted = {**told, CHECKSUM: _sha256(plain, told)}  # inside: two entries of metadata come in no fixed order
        # not `save_file`: a kill would leave a file of its own naming
        temporary.write_bytes(save(plain, metadata={"note": json.dumps(noted, sort_keys=True)}))


def read_checkpoint(path: Path, flag: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_checkpoint` wrote.

    Args:
        path: The file.
        flag: Named in errors.

    Returns:
        The tensors and the note.

    Raises:
        UsageError: No such file, not a checkpoint of this toolkit, or damaged.
    """
    note = _noted(path, flag)
    written = note.pop(CHECKSUM, None)  # absent in files of earlier versions
    try:
        with safe_open(path, framework="pt") as file:
            # clone: memory-mapped tensors may be unaligned, and kernels then give different last bits
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - not a mapping
        whole = written is None or written == _sha256(tensors, note)
    except Exception as error:  # safetensors and torch have more than one way to refuse bytes
        raise UsageError(f"{path} is not a readable .safetensors file", _cure(flag)) from error
    if not whole:
        raise UsageError(f"{path} is damaged: its checksum is another", _cure(flag))
    return tensors, note


def _sha256(tensors: Mapping[str, Tensor], note: Mapping[str, Any]) -> str:
    """Of names, types, shapes and bytes, and of the note: safetensors itself has no checksum."""
    digest = hashlib.sha256(json.dumps(note, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        if tensor.numel():
            digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _cure(flag: str) -> str:
    return f"{flag}; or remove it and run its stage again"


def note_of(path: Path, flag: str) -> dict[str, Any]:
    """The note alone; arguments and errors as those of `read_checkpoint`."""
    note = _noted(path, flag)
    note.pop(CHECKSUM, None)
    return note


def _noted(path: Path, flag: str) -> dict[str, Any]:
    if not path.is_file():
        raise UsageError(f"no checkpoint at {path}", flag)
    try:
        with safe_open(path, framework="pt") as file:
            note = json.loads((file.metadata() or {}).get("note", "null"))
    except Exception as error:
        raise UsageError(f"{path} is not a readable .safetensors file", _cure(flag)) from error
    if not isinstance(note, dict):
        raise UsageError(f"{path} was not written by ssr: it does not say what it belongs to", flag)
    return note
