"""Reading of ``cls_labels_onehot.npy``, a pickled dict of one-hot rows that many projects use, without running its code."""

from __future__ import annotations

import io
import math
import pickle
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pipelines.datasets.classes import ClassList
from pipelines.datasets.names import image_id_of
from pipelines.datasets.splits import read_regular
from pipelines.errors import SsrError


def read_onehot_npy(path: Path, classes: ClassList, ids: Iterable[str] | None = None) -> dict[str, tuple[int, ...]]:
    """Read the labels of a ``.npy`` that holds ``{image_id: one-hot (C,)}``, in its order.

    IRN's files have integer keys: 2007000032 is VOC's ``2007_000032``, and COCO's numbers are padded to 12 digits.

    Args:
        path: File written by ``numpy.save`` of a dict; only NumPy arrays in it are rebuilt, and no other code of it is run.
        classes: Class list of length C.
        ids: Requested images, among which a number is looked up first (``COCO_train2014_000000000009`` for 9).

    Raises:
        SsrError: The file has another form, or needs anything but arrays.
    """
    try:
        content = _unpickle(io.BytesIO(read_regular(path)))
    except OSError as error:
        raise SsrError(f"{path}: cannot read labels: {error.strerror}") from None
    except Exception as error:  # a hostile pickle can raise anything
        raise SsrError(f"{path}: expected a NumPy dict of one-hot rows; refused: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise SsrError(f"{path}: expected a dict of one-hot rows, found {type(content).__name__}")
    labels: dict[str, tuple[int, ...]] = {}
    by_number = {number: image_id for image_id in ids or () if (number := _number_of(image_id)) is not None}
    for number, row in content.items():
        if isinstance(number, bool) or not isinstance(number, str | int) or (isinstance(number, int) and number < 0):
            raise SsrError(f"{path}: expected image ids as keys, found {number!r:.60}")
        key = number if isinstance(number, str) else by_number.get(number) or _id_of_number(number)
        where = f"{path}: entry {key!r:.60}"
        if not isinstance(row, _Array) or row.values is None:
            raise SsrError(f"{where}: expected an array of numbers, found {type(row).__name__.strip('_').lower()}")
        values = row.values
        if values.shape != (len(classes.names),):
            raise SsrError(
                f"{where}: expected {len(classes.names)} columns, found shape {values.shape}", "--classes for other classes"
            )
        if not np.isin(values, (0, 1)).all():
            raise SsrError(f"{where}: expected zeros and ones, found other values")
        labels[image_id_of(key, where)] = tuple(np.flatnonzero(values).tolist())
    return labels


def _id_of_number(number: int) -> str:
    """Return VOC's id if the number is a VOC id without ``_``, else COCO's id of 2017."""
    year, image = divmod(number, 1_000_000)
    return f"{year}_{image:06d}" if 2007 <= year <= 2012 else f"{number:012d}"


def _number_of(image_id: str) -> int | None:
    """Return the number of an id in IRN's files: its digits without ``_``; for COCO's ids of 2014, the last digits."""
    digits = image_id.removeprefix("COCO_").split("2014_", 1)[-1].replace("_", "")
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 16 else None


def _unpickle(file: io.BytesIO) -> object:
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read_header(file)
    if shape != () or not dtype.hasobject:
        raise ValueError(f"an array of {dtype}, shape {shape}")
    array = _Unpickler(file).load()
    if not isinstance(array, _Array) or array.objects is None or len(array.objects) != 1 or array.shape != ():
        raise ValueError(f"a {type(array).__name__}")
    return array.objects[0]


class _Dtype:
    """Replaces ``numpy.dtype`` with a plain type and its byte order.

    NumPy's own class takes flags from a pickle, and some of them make it read the following bytes as addresses.
    """

    def __init__(self, name: str, *_: object) -> None:
        if not isinstance(name, str) or not re.fullmatch(r"[<>|=]?([biufU]\d{1,3}|O8?)", name):
            raise pickle.UnpicklingError(f"it asks for an array of {name!r:.60}")
        self.name = name.lstrip("<>|=")
        self.order = name[0] if name[0] in "<>|=" else "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Set the byte order, which is all that a plain type has."""
        order, *structure = state[1:5]
        if not isinstance(order, str) or order not in {"<", ">", "|", "="} or any(part is not None for part in structure):
            raise pickle.UnpicklingError("it asks for a structured array")
        self.order = order


class _Array:
    """Replaces ``numpy.ndarray``.

    Attributes:
        shape: Shape of the array.
        objects: Its items, if it holds objects.
        values: The array, if it holds numbers.
    """

    def __init__(self) -> None:
        self.shape: tuple[int, ...] = ()
        self.objects: list[Any] | None = None
        self.values: NDArray[Any] | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        """Rebuild the array from shape, type and content."""
        _, shape, dtype, _, content = state
        sound = isinstance(shape, tuple) and all(isinstance(side, int) and side >= 0 for side in shape)
        if not sound or not isinstance(dtype, _Dtype):
            raise pickle.UnpicklingError("it holds an array without shape or type")
        self.shape = shape
        if dtype.name.startswith("O"):
            if not isinstance(content, list) or len(content) != math.prod(shape):
                raise pickle.UnpicklingError("it holds an array of objects without objects")
            self.objects = content
        elif not dtype.name.startswith("U"):
            self.values = np.frombuffer(content, np.dtype(dtype.order + dtype.name)).reshape(shape)


class _Call:
    """A function of NumPy that a pickle may call. The object has no dict of its own, so that nothing can be attached to it."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., object]) -> None:
        self._function = function

    def __call__(self, *arguments: object) -> object:
        return self._function(*arguments)

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError("it changes a function")


def _scalar(dtype: object, content: object) -> str | int:
    """Return a ``numpy.str_`` or an integer, the only scalars that are allowed, as keys."""
    if isinstance(dtype, _Dtype) and isinstance(content, bytes):
        if dtype.name.startswith("U"):
            return content.decode("utf-32-be" if dtype.order == ">" else "utf-32-le").rstrip("\0")
        if dtype.name in {"i4", "i8", "u4", "u8"} and len(content) == int(dtype.name[1:]):
            return int.from_bytes(content, "big" if dtype.order == ">" else "little", signed=dtype.name[0] == "i")
    raise pickle.UnpicklingError("it asks for a scalar that is neither text nor a whole number")


_STAND_INS: dict[tuple[str, str], object] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    **{(module, "_reconstruct"): _Call(lambda *_: _Array()) for module in ("numpy.core.multiarray", "numpy._core.multiarray")},
    **{(module, "scalar"): _Call(_scalar) for module in ("numpy.core.multiarray", "numpy._core.multiarray")},
}


_InPython: Any = pickle._Unpickler


class _Unpickler(_InPython):  # type: ignore[misc]
    """An unpickler that puts replacements for the parts of NumPy arrays and admits nothing else.

    It is the Python implementation: the C unpickler allocates any memo index that a file names, up to all of the memory.
    """

    dispatch: ClassVar[dict[int, Any]] = dict(_InPython.dispatch)

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in _STAND_INS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}"[:200])
        return _STAND_INS[module, name]

    def load_setitem(self) -> None:
        self._check_keys(self.stack[-2:-1])
        _InPython.load_setitem(self)

    def load_setitems(self) -> None:
        self._check_keys(self.stack[::2])
        _InPython.load_setitems(self)

    def refuse(self) -> None:
        raise pickle.UnpicklingError("it holds a set, or a dict in a form that NumPy does not write")

    def _check_keys(self, keys: list[object]) -> None:
        if not all(isinstance(key, str | int) for key in keys):  # hashing nested tuples can take unlimited time
            raise pickle.UnpicklingError("it has keys that are no image ids")

    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.SETITEMS[0]] = load_setitems
    for _code in (pickle.ADDITEMS, pickle.FROZENSET, pickle.DICT):
        dispatch[_code[0]] = refuse
