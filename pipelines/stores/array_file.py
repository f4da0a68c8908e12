"""One HDF5 file of arrays: its layout, and how it is written, checked and opened.

The first 512 bytes are HDF5's user block, which other readers skip. It holds the SHA-256 of all that follows, because HDF5 has
checksums for arrays alone, and a flipped bit in its own tables can crash or hang the library. If a file is damaged, the images
whose own checksums match can still be read.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from pipelines.errors import SsrError
from pipelines.stores.files import atomic_path

MAX_ELEMENTS = 1 << 30
"""Largest array that is read, in bytes; no array of a stage comes near it."""

USER_BLOCK = 512
_LAYOUT: dict[str, Any] = {"userblock_size": USER_BLOCK, "libver": ("v110", "v110")}  # smaller tables, with checksums
_MAGIC = b"ssr array store, sha256 of what follows: "
_CHECK = "crc32"
_PATIENCE = 600.0

_READ_ALL = """
import sys, h5py
with h5py.File(sys.argv[1], "r", locking=False) as file:
    for name in file:
        try:
            file[name][()], dict(file[name].attrs)
        except Exception:
            pass
"""


@contextmanager
def new_file(path: Path, needed: int = 0) -> Iterator[h5py.File]:
    """Write a file under a temporary name, with its checksum; sync it, then rename it.

    Args:
        path: Path of the file.
        needed: Upper bound of its bytes; 0 writes the file to memory first. HDF5 itself must not run into a full disk, because
            it may crash the process.

    Raises:
        SsrError: The file cannot be written.
    """
    with atomic_path(path) as temporary:
        if needed:
            if shutil.disk_usage(path.parent).free < needed:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            with h5py.File(temporary, "w", **_LAYOUT) as file:
                yield file
        else:
            image = io.BytesIO()
            with h5py.File(image, "w", **_LAYOUT) as file:
                yield file
            temporary.write_bytes(image.getbuffer())
        head = _MAGIC + _digest(temporary).encode() + b"\n"
        with temporary.open("rb+") as raw:
            raw.write(head.ljust(USER_BLOCK, b"\0"))


def open_file(path: Path) -> tuple[h5py.File, bool]:
    """Open a file for reading, after its checksum is compared. A file without checksum, made elsewhere, is read as it is.

    Returns:
        The file, and whether it is damaged; then each image has to be checked with `check_array`.

    Raises:
        SsrError: The file is not HDF5, cannot be read, or is damaged such that HDF5 would crash.
    """
    try:
        with path.open("rb") as raw:
            head = raw.read(USER_BLOCK)
        damaged = head.startswith(_MAGIC) and head[len(_MAGIC) : len(_MAGIC) + 64] != _digest(path).encode()
        if damaged and not _survives(path):
            raise SsrError(f"{path} is damaged: its checksum does not match", "remove it and run its stage again")
        return h5py.File(path, "r", locking=False), damaged  # a file never changes after it has its name
    except OSError as error:
        reason = f": {error.strerror}" if error.strerror else ""
        raise SsrError(f"{path} is not a readable HDF5 file{reason}", "remove it and run its stage again") from error


def write_array(
    file: h5py.File, image_id: str, array: NDArray[Any], attributes: Mapping[str, Any], *, compressed: bool = True
) -> None:
    """Write one image. Equal content gives equal bytes, because attributes have fixed lengths and no times are stored."""
    raw = {key: json.dumps(value).encode() for key, value in attributes.items()}
    raw[_CHECK] = json.dumps([_check_of(image_id, raw), _check_of_array(array)]).encode()
    _create(file, image_id, array.shape, array.dtype, raw, compressed)[()] = array


def _create(
    file: h5py.File,
    image_id: str,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    raw: Mapping[str, bytes],
    compressed: bool,
) -> h5py.Dataset:
    """Create an empty dataset in the store's layout."""
    filters: dict[str, Any] = {"chunks": shape, "fletcher32": True}
    if compressed:
        filters |= {"compression": "gzip", "compression_opts": 1, "shuffle": True}
    dataset = file.create_dataset(image_id, shape, dtype, **(filters if np.prod(shape) else {}))
    for key, value in sorted(raw.items()):
        dataset.attrs[key] = np.bytes_(value)
    return dataset


def _check_of(image_id: str, raw: Mapping[str, bytes]) -> int:
    return zlib.crc32(repr((image_id, sorted(raw.items()))).encode())


def _check_of_array(array: NDArray[Any]) -> int:
    return zlib.crc32(np.ascontiguousarray(array).tobytes())


def check_array(image_id: str, dataset: h5py.Dataset, array: NDArray[Any] | None = None) -> None:
    """Compare an image of a damaged file with its own checksum.

    Raises:
        ValueError: Its attributes, or its array if that is given, are not those that were written.
    """
    raw = _raw_attributes(dataset)
    of_attributes, of_array = json.loads(raw.pop(_CHECK))
    if of_attributes != _check_of(image_id, raw) or (array is not None and of_array != _check_of_array(array)):
        raise ValueError(f"{image_id} is damaged")


@dataclass(frozen=True)
class Stored:
    """A dataset as stored in a file.

    Attributes:
        shape: Shape of the array.
        dtype: Type of the array.
        attributes: Bytes of the attributes.
        chunk: The compressed bytes with their checksum, and the mask of skipped filters; None if the data is not one chunk.
        array: Its values, if there is no chunk.
        compressed: Whether the chunk is compressed.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    attributes: dict[str, bytes]
    chunk: tuple[int, bytes] | None
    array: NDArray[Any] | None
    compressed: bool


def stored(dataset: h5py.Dataset) -> Stored:
    """Read a dataset without decompressing it."""
    one_chunk = dataset.chunks == dataset.shape
    chunk = dataset.id.read_direct_chunk((0,) * dataset.ndim) if one_chunk else None
    array = None if one_chunk else dataset[()]
    return Stored(dataset.shape, dataset.dtype, _raw_attributes(dataset), chunk, array, bool(dataset.compression))


def write_stored(file: h5py.File, image_id: str, found: Stored) -> None:
    """Write a dataset that `stored` has read."""
    target = _create(file, image_id, found.shape, found.dtype, found.attributes, found.compressed)
    if found.chunk is not None:
        mask, chunk = found.chunk
        target.id.write_direct_chunk((0,) * len(found.shape), chunk, mask)
    else:
        target[()] = found.array


def holds(file: h5py.File, image_id: str) -> bool:
    """Return whether a file has an entry of this name; a broken link counts too."""
    return bool(file.id.links.exists(image_id.encode()))


def plain_array(file: h5py.File, image_id: str, path: Path) -> h5py.Dataset:
    """Return the dataset if it is a plain one: no reference outside the file, no objects, no absurd shape.

    Raises:
        SsrError: It is not plain.
    """
    link = file.get(image_id, getlink=True)
    dataset = file.get(image_id) if isinstance(link, h5py.HardLink) else None
    plain = (
        isinstance(dataset, h5py.Dataset)
        and not dataset.external
        and not dataset.is_virtual
        and dataset.dtype.kind in "biuf"
        and dataset.size <= MAX_ELEMENTS
    )
    if not plain:
        raise SsrError(f"{image_id} in {path} is not a plain array and was not read", "make the store with ssr itself")
    return dataset


def read_attributes(dataset: h5py.Dataset) -> dict[str, Any]:
    """Return the attributes as Python values."""
    return {key: json.loads(value) for key, value in _raw_attributes(dataset).items() if key != _CHECK}


def _raw_attributes(dataset: h5py.Dataset) -> dict[str, bytes]:
    return {key: bytes(value) for key, value in dataset.attrs.items() if isinstance(value, bytes)}


@contextmanager
def damage_of(path: Path, image_id: str | None = None) -> Iterator[None]:
    """Turn every error of h5py for damaged bytes into one line."""
    try:
        yield
    except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
        what = str(path) if image_id is None else f"{image_id} in {path}"
        raise SsrError(f"{what} is damaged", "run its stage again with --force") from error


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(USER_BLOCK)
        return hashlib.file_digest(file, "sha256").hexdigest()


def _survives(path: Path) -> bool:
    """Return whether a process that reads the whole file ends normally; then only single images can be damaged."""
    command = [sys.executable, "-c", _READ_ALL, str(path)]
    try:
        return subprocess.run(command, capture_output=True, timeout=_PATIENCE, check=False).returncode == 0  # noqa: S603
    except subprocess.TimeoutExpired:
        return False
