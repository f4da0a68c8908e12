"""One array per image in HDF5, safe against a kill at any moment.

A writer never changes a file that already counts. Images are gathered in a *part* (``NAME.h5.parts/000001.h5``) which is
written under a temporary name, synced and renamed: from then on its images are committed. When the writer closes, parts
and the main file are merged into a new main file, again by rename, in the order of the ids: how often a run was broken
off leaves no trace in the bytes. A kill loses the images of the open part at most.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from pipelines.errors import SsrError
from pipelines.stores.files import atomic_path, remove_leftovers

MAX_ELEMENTS = 1 << 30
"""Arrays larger than this are refused on reading: no image of ours comes near it."""

Record = tuple[NDArray[Any], dict[str, Any]]


class ArrayReader:
    """Read-only view of a store: the main file and the parts a broken-off run left.

    Args:
        path: The main file, ``NAME.h5``; it need not exist while there are parts.

    Raises:
        SsrError: There is no store, or a file of it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        files = _files(path)
        if not files:
            raise SsrError(f"no store at {path}")
        self._files: list[h5py.File] = []
        self._where: dict[str, h5py.File] = {}
        for name in files:  # later parts replace earlier images
            file = _open(name)
            self._files.append(file)
            with _damage_of(name):
                self._where.update(dict.fromkeys(file, file))

    def __contains__(self, image_id: str) -> bool:
        return image_id in self._where

    def __len__(self) -> int:
        return len(self._where)

    def ids(self) -> list[str]:
        """Image ids, sorted."""
        return sorted(self._where)

    def attributes(self, image_id: str) -> dict[str, Any]:
        """The image's attributes alone, as Python values."""
        with _damage_of(self.path, image_id):
            return _attributes(self._dataset(image_id))

    def read(self, image_id: str) -> Record:
        """Array and attributes of one image.

        Raises:
            SsrError: The image is missing, damaged, or stored in a way that could reach outside the file.
        """
        with _damage_of(self.path, image_id):
            dataset = self._dataset(image_id)
            return dataset[()], _attributes(dataset)

    def _dataset(self, image_id: str) -> h5py.Dataset:
        file = self._where.get(image_id)
        if file is None:
            raise SsrError(f"{self.path} has no image {image_id}")
        return _checked(file, image_id, self.path)

    def close(self) -> None:
        """Close all files."""
        for file in self._files:
            file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class ArrayWriter:
    """The one writer of a store.

    Args:
        path: The main file, ``NAME.h5``.
        part_images: Images a part holds at most.
        part_seconds: Age at which a part is committed although it is not full.

    Raises:
        SsrError: Another process writes this store, or a file of it is damaged.
    """

    def __init__(self, path: Path, part_images: int = 64, part_seconds: float = 20.0) -> None:
        self.path = path
        self._part_images = part_images
        self._part_seconds = part_seconds
        self._pending: dict[str, Record] = {}
        self._since = time.monotonic()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(path.with_name(f".{path.name}.lock"))
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise SsrError(f"another process is writing {path}", "wait for it, or give another --work") from error
        except OSError as error:
            raise SsrError(f"cannot write {path}: {error.strerror}", "choose another --work folder") from error
        for leftover in path.parent.glob(f".{path.name}.*.tmp"):
            leftover.unlink(missing_ok=True)
        remove_leftovers(_parts_folder(path))

    def add(self, image_id: str, array: NDArray[Any], attributes: Mapping[str, Any] | None = None) -> None:
        """Add or replace one image; it is committed with its part."""
        self._pending[image_id] = (np.asarray(array), dict(attributes or {}))
        if len(self._pending) >= self._part_images or time.monotonic() - self._since > self._part_seconds:
            self.commit()

    def commit(self) -> None:
        """Commit the open part."""
        self._since = time.monotonic()
        if not self._pending:
            return
        parts = _parts(self.path)
        number = int(parts[-1].stem) + 1 if parts else 1
        with atomic_path(_parts_folder(self.path) / f"{number:06d}.h5") as temporary, h5py.File(temporary, "w") as file:
            for image_id, (array, attributes) in sorted(self._pending.items()):
                dataset = _create(file, image_id, array.shape, array.dtype, attributes)
                dataset[()] = array
        self._pending.clear()

    def clear(self) -> None:
        """Start over: remove every committed image."""
        self._pending.clear()
        self.path.unlink(missing_ok=True)
        for part in _parts(self.path):
            part.unlink()

    def close(self) -> None:
        """Commit, merge the parts into the main file, and release the store."""
        try:
            self.commit()
            parts = _parts(self.path)
            if parts:
                self._merge()
                for part in parts:
                    part.unlink()
            folder = _parts_folder(self.path)
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        finally:
            self._lock.release()

    def _merge(self) -> None:
        with ArrayReader(self.path) as reader, atomic_path(self.path) as temporary, h5py.File(temporary, "w") as file:
            for image_id in reader.ids():
                source = reader._dataset(image_id)
                target = _create(file, image_id, source.shape, source.dtype, reader.attributes(image_id))
                if source.chunks == source.shape:
                    origin = (0,) * source.ndim
                    mask, chunk = source.id.read_direct_chunk(origin)  # as it is, compressed and with its checksum
                    target.id.write_direct_chunk(origin, chunk, mask)
                else:
                    target[()] = source[()]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def store_exists(path: Path) -> bool:
    """Whether a main file or a committed part is there."""
    return bool(_files(path))


def iter_records(path: Path) -> Iterator[tuple[str, Record]]:
    """All images of a store, by id."""
    with ArrayReader(path) as reader:
        for image_id in reader.ids():
            yield image_id, reader.read(image_id)


def _create(
    file: h5py.File, image_id: str, shape: tuple[int, ...], dtype: np.dtype[Any], attributes: Mapping[str, Any]
) -> h5py.Dataset:
    """An empty dataset in the store's layout. Equal content gives equal bytes: attributes are of fixed length, no times."""
    filters = {"chunks": shape, "compression": "gzip", "compression_opts": 1, "shuffle": True, "fletcher32": True}
    dataset = file.create_dataset(image_id, shape, dtype, **(filters if np.prod(shape) else {}))
    for key, value in sorted(attributes.items()):
        dataset.attrs[key] = np.bytes_(json.dumps(value).encode())
    return dataset


def _parts_folder(path: Path) -> Path:
    return path.with_name(f"{path.name}.parts")


def _parts(path: Path) -> list[Path]:
    return sorted(p for p in _parts_folder(path).glob("[0-9]*.h5"))


def _files(path: Path) -> list[Path]:
    return [*([path] if path.is_file() else []), *_parts(path)]


@contextmanager
def _damage_of(path: Path, image_id: str | None = None) -> Iterator[None]:
    """Whatever h5py raises for damaged bytes becomes one line."""
    try:
        yield
    except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
        what = str(path) if image_id is None else f"{image_id} in {path}"
        raise SsrError(f"{what} is damaged", "run its stage again with --force") from error


def _open(path: Path) -> h5py.File:
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise SsrError(f"{path} is not a readable HDF5 file", "remove it and run its stage again") from error


def _checked(file: h5py.File, image_id: str, path: Path) -> h5py.Dataset:
    """The dataset, if it is a plain one: nothing that points outside the file, no objects, no absurd shape."""
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


def _attributes(dataset: h5py.Dataset) -> dict[str, Any]:
    return {key: json.loads(value) for key, value in dataset.attrs.items() if isinstance(value, bytes)}
