"""Trained parameters as safetensors with a JSON note inside. Such files contain no code, and are complete or absent."""

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
"""Key of a file's checksum in the note, which is removed from notes that are returned."""


def write_checkpoint(path: Path, tensors: Mapping[str, Tensor], note: Mapping[str, Any]) -> None:
    """Write tensors and a JSON note.

    Args:
        path: A ``.safetensors`` file; its folder is made.
        tensors: Tensors by name.
        note: Identity of the weights, text and options that the tensors belong to, as JSON.
    """
    with atomic_path(path) as temporary:
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        told = {key: value for key, value in note.items() if key != CHECKSUM}  # a note that was read elsewhere may hold one
        noted = {**told, CHECKSUM: _sha256(plain, told)}  # in it, because metadata entries have no fixed order
        # not `save_file`: a kill would leave a temporary file of its own
        temporary.write_bytes(save(plain, metadata={"note": json.dumps(noted, sort_keys=True)}))


def read_checkpoint(path: Path, flag: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_checkpoint` wrote.

    Args:
        path: The file.
        flag: Flag that errors name.

    Returns:
        The tensors and the note.

    Raises:
        UsageError: There is no such file, it is no checkpoint of this toolkit, or it is damaged.
    """
    note = _noted(path, flag)
    written = note.pop(CHECKSUM, None)  # absent in files of earlier versions
    try:
        with safe_open(path, framework="pt") as file:
            # cloned, because memory-mapped tensors may be unaligned, and kernels then give different last bits
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - not a mapping
        whole = written is None or written == _sha256(tensors, note)
    except Exception as error:  # safetensors and torch raise several kinds of errors for bad bytes
        raise UsageError(f"{path} is not a readable .safetensors file", _cure(flag)) from error
    if not whole:
        raise UsageError(f"{path} is damaged: its checksum does not match", _cure(flag))
    return tensors, note


def _sha256(tensors: Mapping[str, Tensor], note: Mapping[str, Any]) -> str:
    """Return SHA-256 over names, types, shapes and bytes of the tensors, and the note; safetensors itself has no checksum."""
    digest = hashlib.sha256(json.dumps(note, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        if tensor.numel():
            digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _cure(flag: str) -> str:
    return f"{flag}; or remove it and run its stage again"


def note_of(path: Path, flag: str) -> dict[str, Any]:
    """Read the note alone; arguments and errors as in `read_checkpoint`."""
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
        raise UsageError(f"{path} was not written by ssr: it has no note on its origin", flag)
    return note
