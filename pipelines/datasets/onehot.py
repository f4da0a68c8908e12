"""The field's ``cls_labels_onehot.npy``: a pickled dict of one-hot rows, read without trusting it."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import IO

import numpy as np

from pipelines.datasets.classes import ClassList
from pipelines.datasets.splits import check_image_id
from pipelines.errors import SsrError

_ARRAYS = frozenset(
    {("numpy", "ndarray"), ("numpy", "dtype")}
    | {(module, name) for module in ("numpy.core.multiarray", "numpy._core.multiarray") for name in ("_reconstruct", "scalar")}
)


class _ArrayUnpickler(pickle.Unpickler):
    """Admits what rebuilds NumPy arrays, by name, and nothing else."""

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in _ARRAYS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(module, name)


def read_onehot_npy(path: Path, classes: ClassList) -> dict[str, tuple[int, ...]]:
    """Labels of a ``.npy`` that holds ``{image_id: one-hot (C,)}``, in its order.

    Args:
        path: Written by ``numpy.save`` of a dict; only NumPy arrays in it are rebuilt, no other code of it is run.
        classes: Class list; C must be its length.

    Raises:
        SsrError: The file is not that, or asks for anything but arrays.
    """
    try:
        with path.open("rb") as file:
            content = _unpickle(file)
    except OSError as error:
        raise SsrError(f"{path}: cannot read labels: {error.strerror}") from None
    except Exception as error:  # a hostile pickle can raise anything
        raise SsrError(f"{path}: expected a NumPy dict of one-hot rows; refused: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise SsrError(f"{path}: expected a dict of one-hot rows, found {type(content).__name__}")
    labels: dict[str, tuple[int, ...]] = {}
    for key, row in content.items():
        if not isinstance(key, str):
            raise SsrError(f"{path}: expected image ids as keys, found {key!r}")
        where = f"{path}: entry {key!r}"
        if not isinstance(row, np.ndarray) or row.dtype.kind not in "biuf":
            raise SsrError(f"{where}: expected an array of numbers, found {type(row).__name__}")
        if row.shape != (len(classes.names),):
            raise SsrError(
                f"{where}: expected {len(classes.names)} columns, found shape {row.shape}", "--classes for other classes"
            )
        if not np.isin(row, (0, 1)).all():
            raise SsrError(f"{where}: expected zeros and ones, found other values")
        labels[check_image_id(key, where)] = tuple(np.flatnonzero(row).tolist())
    return labels


def _unpickle(file: IO[bytes]) -> object:
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read_header(file)
    if shape != () or not dtype.hasobject:
        raise ValueError(f"an array of {dtype}, shape {shape}")
    array = _ArrayUnpickler(file).load()
    if not isinstance(array, np.ndarray) or array.shape != () or array.dtype != object:
        raise ValueError(f"a {type(array).__name__}")
    return array.item()
