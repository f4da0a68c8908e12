"""Trained parameters as safetensors with a JSON note inside: nothing that could execute, whole or not at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pipelines.errors import UsageError
from pipelines.stores.files import atomic_path

CHECKSUM = "sha256"
"""Entry of the note, over tensors and the rest of the note. Files without one are read, too."""


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
        told[CHECKSUM] = _checksum(plain, told)  # in the note: of two entries safetensors writes either first
        try:
            save_file(plain, temporary, metadata={"note": json.dumps(told, sort_keys=True)})
        except SafetensorError as error:  # a full disk
            raise OSError(str(error)) from error


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
    note = _whole_note(path, flag)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError) as error:
        raise UsageError(f"{path} is not a readable .safetensors file", _cure(flag)) from error
    wanted = note.pop(CHECKSUM, None)
    if wanted is not None and wanted != _checksum(tensors, note):
        raise UsageError(f"{path} is damaged: its checksum is another", _cure(flag))
    return tensors, note


def _checksum(tensors: Mapping[str, Tensor], note: Mapping[str, Any]) -> str:
    """Of everything that `write_checkpoint` is given: safetensors itself would take another number for granted."""
    found = hashlib.sha256(json.dumps(note, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        found.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _cure(flag: str) -> str:
    return f"{flag}; or remove it and run its stage again"


def note_of(path: Path, flag: str) -> dict[str, Any]:
    """The note alone; arguments and errors as those of `read_checkpoint`."""
    note = _whole_note(path, flag)
    note.pop(CHECKSUM, None)
    return note


def _whole_note(path: Path, flag: str) -> dict[str, Any]:
    if not path.is_file():
        raise UsageError(f"no checkpoint at {path}", flag)
    try:
        with safe_open(path, framework="pt") as file:
            note = json.loads((file.metadata() or {}).get("note", "null"))
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise UsageError(f"{path} is not a readable .safetensors file", _cure(flag)) from error
    if not isinstance(note, dict):
        raise UsageError(f"{path} was not written by ssr: it does not say what it belongs to", flag)
    return note


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimiser's moments by name, ``optimiser.INDEX.NAME``."""
    return {
        f"optimiser.{index}.{name}": torch.as_tensor(value)
        for index, moments in optimiser.state_dict()["state"].items()
        for name, value in moments.items()
    }


def restore_optimiser(optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `optimiser_tensors` took, found among other tensors."""
    moments: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimiser."):
            _, index, name = key.split(".")
            moments.setdefault(int(index), {})[name] = value
    optimiser.load_state_dict({**optimiser.state_dict(), "state": moments})
