"""Files of weights: they are read as tensors only, checked against a model, and loaded."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pipelines.encoders.torchscript import is_torchscript, read_torchscript
from pipelines.encoders.weights_folder import first_line
from pipelines.errors import SsrError, UsageError


class WithoutRandomWeights(TorchFunctionMode):
    """A block in which new models get no random numbers, because a file is loaded into them next.

    Drawing them for ViT-B/16 takes a second of CPU time. The memory holds anything until `load_state` fills it.
    """

    _DRAWS = frozenset(
        {
            nn.init.kaiming_uniform_,
            nn.init.normal_,
            nn.init.trunc_normal_,
            nn.init.uniform_,
            nn.init.xavier_normal_,
            nn.init.xavier_uniform_,
            Tensor.erfinv_,
            Tensor.normal_,
            Tensor.uniform_,
        }
    )

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[Any],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Return the tensor as it is in place of drawing its numbers; call any other function."""
        kwargs = kwargs or {}
        if function in self._DRAWS:
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)


def read_state(path: Path) -> dict[str, Tensor]:
    """Read the named tensors of a file to the CPU: safetensors, pickles that ``weights_only=True`` admits, or TorchScript.

    Names in nested tables, such as checkpoints of trainings have, are joined by ``.``; a lone ``state_dict`` is unpacked.

    Raises:
        SsrError: The file is damaged or holds something else.
    """
    _refuse_other_files(path)
    try:
        state = _read(path)
    except (SafetensorError, OSError, RuntimeError, ValueError, EOFError, KeyError) as error:
        raise SsrError(f"cannot read weights {path}: {first_line(error)}", "bring an intact .safetensors") from error
    except Exception as error:  # such as pickle.UnpicklingError; an unsafe load is never tried
        hint = "where its code is, load it and save model.state_dict() as .safetensors"
        raise SsrError(f"{path} holds more than tensors and was not loaded: {_asks_for(error)}", hint) from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        others = [value for key, value in state.items() if key != "state_dict" and isinstance(value, dict)]
        state = state if any(_flat(other) for other in others) else state["state_dict"]
    tensors = _flat(state)
    if not tensors:
        raise SsrError(f"{path} is no dictionary of named tensors", "bring the model's state_dict as .safetensors")
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise SsrError(f"{path}: {name!r:.60} is no plain tensor", "bring an intact .safetensors")
    return tensors


_OTHER_FILES = {
    b"version https://git-lfs": ("a pointer of Git LFS in place of the file", "git lfs pull, or download the file itself"),
    b"<": ("a web page", "download the file itself: a link to a page was saved"),
    b"\x1f\x8b": ("a gzip archive", "unpack it first"),
    b"7z\xbc\xaf": ("a 7-Zip archive", "unpack it first"),
}
"""First bytes of other files that are named like weights, with their kind and what to do."""


def _refuse_other_files(path: Path) -> None:
    """Refuse files that a failed download left in place of weights; the readers report other faults."""
    try:
        with path.open("rb") as file:
            start = file.read(32)
    except OSError:
        return
    if not start:
        raise SsrError(f"{path}: expected weights, found an empty file", "download it again, or bring an intact .safetensors")
    for mark, (found, cure) in _OTHER_FILES.items():
        if start.lstrip().startswith(mark):
            raise SsrError(f"{path}: expected weights, found {found}", cure)


class _Arguments:
    """Replacement for the arguments of a training, which DINO's checkpoints hold beside the weights."""


def _read(path: Path) -> object:
    if path.suffix == ".safetensors":
        return load_file(path)
    if is_torchscript(path):
        return read_torchscript(path)
    with torch.serialization.safe_globals([(_Arguments, "argparse.Namespace")]):
        return torch.load(path, map_location="cpu", weights_only=True)


def _asks_for(error: Exception) -> str:
    """Return the name that a pickle requires, from the many lines of torch's message."""
    asked = re.search(r"GLOBAL (\S+)|it asks for (\S+)", str(error))
    return f"it asks for {asked[1] or asked[2]:.80}" if asked else first_line(error)


def _flat(state: object, depth: int = 4) -> dict[str, Tensor]:
    """Return tensors by name; names in nested tables are joined by ``.``."""
    found: dict[str, Tensor] = {}
    for key, value in state.items() if isinstance(state, dict) else ():
        if isinstance(key, str) and isinstance(value, Tensor):
            found[key] = value
        elif isinstance(key, str) and isinstance(value, dict) and depth:
            found |= {f"{key}.{name}": tensor for name, tensor in _flat(value, depth - 1).items()}
    return found


def load_state(model: nn.Module, state: dict[str, Tensor], model_name: str, path: Path, optional: Collection[str] = ()) -> None:
    """Load tensors into a model after all of them are checked.

    Args:
        model: Model of fp32 parameters, on the CPU.
        state: Named tensors; those that the model lacks are left out.
        model_name: For messages.
        path: File of the tensors, for messages.
        optional: Names that may be missing.

    Raises:
        UsageError: A name is missing, or a shape or type differs.
        SsrError: A number is not finite.
    """
    own = model.state_dict()
    missing = [k for k in own if k not in state and k not in optional]
    misfit = [k for k, v in state.items() if k in own and own[k].shape != v.shape]
    if missing or misfit:
        detail = (
            f"lacks {missing[0]}"
            if missing
            else (f"has {misfit[0]} of shape {tuple(state[misfit[0]].shape)}, not {tuple(own[misfit[0]].shape)}")
        )
        raise UsageError(f"{path} does not fit {model_name}: it {detail}", "bring the weights of this model")
    taken = {k: v for k, v in state.items() if k in own}  # other tensors are not read: they may claim any size
    unlike = [k for k, v in taken.items() if v.is_floating_point() != own[k].is_floating_point() or v.is_complex()]
    if unlike:
        found = f"{unlike[0]} of {taken[unlike[0]].dtype}, not {own[unlike[0]].dtype}"
        raise UsageError(f"{path} does not fit {model_name}: it has {found}", "bring the weights of this model")
    if not all(torch.isfinite(v.to(own[k].dtype)).all() for k, v in taken.items()):
        raise SsrError(f"{path} holds NaN or infinite weights", "bring an intact file")
    model.load_state_dict(taken, strict=False)
