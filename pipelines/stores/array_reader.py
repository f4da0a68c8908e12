"""Reading of a store: its main file, the parts of an interrupted run, and its shards, together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from heapq import merge
from itertools import groupby
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any, Self

import h5py
from numpy.typing import NDArray

from pipelines.errors import SsrError
from pipelines.stores.array_file import check_array, damage_of, holds, open_file, plain_array, read_attributes
from pipelines.stores.shard import Shard, own_place, shard_folders

Record = tuple[NDArray[Any], dict[str, Any]]


class ArrayReader:
    """A read-only view of a store. Images are looked up in the files, and no list of them is held in memory.

    Args:
        path: The main file, ``NAME.h5``; it may be missing if there are parts or shards.
        shard: The shard whose images alone are read.

    Raises:
        SsrError: There is no store, or one of its files cannot be opened.
    """

    def __init__(self, path: Path, shard: Shard | None = None) -> None:
        path = own_place(path, shard)
        shards = {} if shard is not None else {each: files_of(place) for each, place in shard_stores(path)}
        self._set_up(path, files_of(path), shards)

    @classmethod
    def of_files(cls, files: Sequence[Path]) -> Self:
        """Return a reader of some files alone, oldest first."""
        reader = cls.__new__(cls)
        reader._set_up(files[0].parent, list(files), {})
        return reader

    def _set_up(self, path: Path, own: list[Path], shards: dict[Shard, list[Path]]) -> None:
        self.path = path
        self._own = own
        self._shards = shards
        self._opening = Lock()
        self._open: dict[Path, h5py.File] = {}
        self._damaged: set[Path] = set()
        if not own and not shards:
            raise SsrError(f"no store at {path}")
        try:
            for file in own:  # shard files may be many, and a worker reads its own alone: they are opened when needed
                self._file(file)
        except SsrError:
            self.close()
            raise

    def __contains__(self, image_id: str) -> bool:
        return self._find(image_id) is not None

    def __len__(self) -> int:
        files = list(self._files())
        if len(files) == 1:
            with damage_of(files[0]):
                return len(self._file(files[0]))
        return sum(1 for _ in self.sources())

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.stat().st_size for file in self._files())

    def ids(self) -> list[str]:
        """Return the image ids, sorted."""
        return [image_id for image_id, _ in self.sources()]

    def sources(self) -> Iterator[tuple[str, Path]]:
        """Yield the image ids, sorted, each with the newest file that has it."""
        files = list(self._files())

        def names(age: int) -> Iterator[tuple[str, int]]:
            with damage_of(files[age]):
                for name in list(self._file(files[age])):  # a list, because `reopen` may close the file in between
                    if not isinstance(name, str):  # bytes that are no UTF-8
                        raise SsrError(
                            f"{files[age]} is damaged: an image is called {name!r:.60}", "run its stage again with --force"
                        )
                    yield name, age

        for image_id, found in groupby(merge(*map(names, range(len(files)))), key=lambda entry: entry[0]):
            yield image_id, files[max(age for _, age in found)]

    def attributes(self, image_id: str) -> dict[str, Any]:
        """Return the image's attributes as Python values, without reading its array."""
        with damage_of(self.path, image_id):
            return read_attributes(self.dataset(image_id))

    def read(self, image_id: str) -> Record:
        """Read the array and the attributes of one image.

        Raises:
            SsrError: The image is missing, damaged, or stored in a way that could reach outside the file.
        """
        with damage_of(self.path, image_id):
            source = self._found(image_id)
            dataset = self.dataset(image_id, source)
            array = dataset[()]
            if source in self._damaged:
                check_array(image_id, dataset, array)
            return array, read_attributes(dataset)

    def dataset(self, image_id: str, source: Path | None = None) -> h5py.Dataset:
        """Return the plain HDF5 dataset of an image, from the newest file or from ``source``."""
        source = source or self._found(image_id)
        dataset = plain_array(self._file(source), image_id, source)
        if source in self._damaged:
            check_array(image_id, dataset)
        return dataset

    def _found(self, image_id: str) -> Path:
        source = self._find(image_id)
        if source is None:
            raise SsrError(f"{self.path} has no image {image_id}")
        return source

    def reopen(self) -> None:
        """Close all files and open them again, because HDF5 keeps the tables of every image that it has read."""
        for path, file in self._open.items():
            file.close()
            self._open[path] = h5py.File(path, "r", locking=False)

    def close(self) -> None:
        """Close all files."""
        for file in self._open.values():
            file.close()
        self._open.clear()

    def _files(self) -> Iterator[Path]:
        """Yield all files, oldest first: the main file, its parts, then shard by shard."""
        yield from self._own
        for files in self._shards.values():
            yield from files

    def _find(self, image_id: str) -> Path | None:
        candidates = [path for shard, files in self._shards.items() if shard.holds(image_id) for path in files]
        for path in reversed(self._own + candidates):
            with damage_of(path):
                if holds(self._file(path), image_id):
                    return path
        return None

    def _file(self, path: Path) -> h5py.File:
        file = self._open.get(path)
        if file is None:
            with self._opening:
                if path not in self._open:
                    self._open[path], damaged = open_file(path)
                    if damaged:
                        self._damaged.add(path)
                file = self._open[path]
        return file

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def store_exists(path: Path) -> bool:
    """Return whether a main file, a committed part or a shard exists."""
    return bool(files_of(path)) or any(True for _ in shard_stores(path))


def iter_records(path: Path) -> Iterator[tuple[str, Record]]:
    """Yield all images of a store, by id."""
    with ArrayReader(path) as reader:
        for image_id in reader.ids():
            yield image_id, reader.read(image_id)


def files_of(path: Path) -> list[Path]:
    """Return the main file and the committed parts, oldest first."""
    return [*([path] if path.is_file() else []), *parts_of(path)]


def parts_folder(path: Path) -> Path:
    """Return the folder of the parts of a store."""
    return path.with_name(f"{path.name}.parts")


def parts_of(path: Path) -> list[Path]:
    """Return the committed parts, oldest first; for equal numbers the merged part is newer."""
    found = [part for part in parts_folder(path).glob("[0-9]*.h5") if _is_part(part)]
    return sorted(found, key=part_number)


def part_number(part: Path) -> tuple[int, int]:
    """Split the name of a part, ``000012-1.h5`` -> (12, 1): its number, and how many merges made it."""
    number, _, level = part.stem.partition("-")
    return int(number), int(level or 0)


def _is_part(part: Path) -> bool:
    with suppress(ValueError):
        return part_number(part) >= (0, 0)
    return False


def shard_stores(path: Path) -> Iterator[tuple[Shard, Path]]:
    """Yield the shards of a store that have committed images."""
    for shard, folder in shard_folders(path.parent):
        place = folder / path.name
        if files_of(place):
            yield shard, place
