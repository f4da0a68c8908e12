"""Tensors of a TorchScript archive, such as OpenAI's ``ViT-B-16.pt``; its code is not run."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_DTYPES = {
    "FloatStorage": torch.float32, "HalfStorage": torch.float16, "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64, "LongStorage": torch.int64, "IntStorage": torch.int32, "ShortStorage": torch.int16,
    "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip
_DEEPEST = 60


def is_torchscript(path: Path) -> bool:
    """Return whether a file is a TorchScript archive, which is a ZIP with code beside its tensors."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") or "/code/" in name for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return False


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """Read parameters and buffers of an archive by their names, on the CPU.

    Raises:
        pickle.UnpicklingError: The archive requires anything but modules and tensors.
        ValueError: A tensor reaches beyond its storage.
    """
    with zipfile.ZipFile(path) as archive:
        root = next(name for name in archive.namelist() if name.endswith("/data.pkl")).removesuffix("data.pkl")
        found = _Unpickler(io.BytesIO(_stored(archive, f"{root}data.pkl")), archive, f"{root}data/").load()
    state: dict[str, Tensor] = {}
    _collect(found, "", state, 0)
    return state


def _collect(item: object, name: str, state: dict[str, Tensor], depth: int) -> None:
    if isinstance(item, Tensor):
        state[name.rstrip(".")] = item
    elif isinstance(item, _Module) and depth < _DEEPEST:
        for key, value in item.state.items():
            _collect(value, f"{name}{key}.", state, depth + 1)


def _stored(archive: zipfile.ZipFile, name: str) -> bytes:
    """Read a record of the archive. A compressed one is refused: PyTorch writes none, and it might fill the memory."""
    record = archive.getinfo(name)
    if record.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"record {name!r:.60} is compressed")
    return archive.read(record)


class _Module:
    """Replacement for every module and class of the archive; it holds the attributes."""

    def __init__(self) -> None:
        self.state: dict[str, Any] = {}

    def __setstate__(self, state: object) -> None:
        if isinstance(state, dict) and all(isinstance(key, str) for key in state):
            self.state = state


class _Kind:
    """Replacement for a type of storage."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype


class _Call:
    """A function that the archive may call; no state can be set on it."""

    __slots__ = ("_function",)

    def __init__(self, function: Any) -> None:
        self._function = function

    def __call__(self, *arguments: object) -> object:
        return self._function(*arguments)

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("it changes a function")


def _tensor(storage: object, offset: object, size: object, stride: object, *_: object) -> Tensor:
    """Return a view of a storage after a check that it lies within."""
    numbers = (offset, *size, *stride) if isinstance(size, tuple) and isinstance(stride, tuple) else (None,)
    if not isinstance(storage, Tensor) or not all(type(n) is int and n >= 0 for n in numbers):
        raise pickle.UnpicklingError("it holds a tensor without storage, size or stride")
    start, sides, steps = numbers[0], numbers[1 : 1 + len(size)], numbers[1 + len(size) :]  # type: ignore[arg-type]
    last = start + sum((side - 1) * step for side, step in zip(sides, steps, strict=True))
    if 0 not in sides and last >= storage.numel():
        raise ValueError("a tensor reaches beyond its storage")
    return storage.as_strided(sides, steps, start).clone()


_ALLOWED: dict[tuple[str, str], object] = {
    ("torch._utils", "_rebuild_tensor_v2"): _Call(_tensor),
    ("torch._utils", "_rebuild_parameter"): _Call(lambda tensor, *_: tensor),
    ("collections", "OrderedDict"): _Call(lambda *_: OrderedDict()),
    **{("torch", name): _Kind(dtype) for name, dtype in _DTYPES.items()},
    **{("torch.jit._pickle", name): _Call(lambda items, *_: items) for name in ("build_intlist", "build_tensorlist",
       "build_doublelist", "build_boollist", "build_tensor_from_id", "restore_type_tag")},
}  # fmt: skip

_InPython: Any = pickle._Unpickler  # the C unpickler allocates room for any memo index in a file


class _Unpickler(_InPython):  # type: ignore[misc]
    """An unpickler that admits modules, tensors and plain values only."""

    def __init__(self, file: io.BytesIO, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(file)
        self._archive, self._folder = archive, folder
        self._storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> object:
        if module == "__torch__" or module.startswith("__torch__."):
            return _Module
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}"[:200])
        return _ALLOWED[module, name]

    def persistent_load(self, key: object) -> Tensor:
        if not (isinstance(key, tuple) and len(key) == 5 and isinstance(key[1], _Kind) and isinstance(key[2], str)):
            raise pickle.UnpicklingError("it names a storage in an unknown way")
        _, kind, record, _, _ = key
        if record not in self._storages:
            content = bytearray(_stored(self._archive, self._folder + record))
            self._storages[record] = (
                torch.frombuffer(content, dtype=kind.dtype) if content else torch.empty(0, dtype=kind.dtype)
            )
        return self._storages[record]
