"""A store of one array per image in HDF5, safe against a kill at any moment.

A writer never changes a file that already counts. Images are gathered in a *part* (``NAME.h5.parts/000001.h5``), which is
written under a temporary name, synced and renamed; this commits its images. When the writer closes, parts and the main file are
merged into a new main file, again by rename, in the order of the ids, so that the bytes depend neither on interruptions nor on
the number of shards. A kill loses at most the images of the open part.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from pipelines.errors import SsrError, UsageError
from pipelines.stores.array_file import damage_of, new_file, stored, write_array, write_stored
from pipelines.stores.array_reader import (
    ArrayReader,
    Record,
    files_of,
    iter_records,
    part_number,
    parts_folder,
    parts_of,
    shard_stores,
    store_exists,
)
from pipelines.stores.files import remove_leftovers
from pipelines.stores.shard import Shard, own_place, shard_folders

__all__ = ["ArrayReader", "ArrayWriter", "Record", "iter_records", "store_exists"]

UNITE = 32
"""Number of parts that are merged into one, so that an interrupted run of any length leaves few files."""

PART_BYTES = 1 << 27
"""Approximate size limit of a part in bytes, for any number of images, because it is made in memory."""

REOPEN = 2048
"""Number of images after which a merge opens its sources again, so that memory does not grow with their number."""

PATIENCE = 30.0
"""Seconds that a shard's writer waits for other shards, which hold the lock of the whole store while they start."""


class ArrayWriter:
    """The only writer of a store, or of one shard of it.

    Args:
        path: The main file, ``NAME.h5``.
        part_images: Largest number of images in a part.
        part_seconds: Age at which a part is committed although it is not full.
        shard: Shard to write. Without it, existing shards are merged into the main file on closing.

    Raises:
        SsrError: Another process writes this store, or one of its files is damaged.
        UsageError: The store has shards of another count.
    """

    def __init__(self, path: Path, part_images: int = 64, part_seconds: float = 20.0, *, shard: Shard | None = None) -> None:
        self.path = own_place(path, shard)
        self._shard = shard
        self._part_images = part_images
        self._part_seconds = part_seconds
        self._pending: dict[str, tuple[NDArray[Any], dict[str, Any], bool]] = {}
        self._since = time.monotonic()
        self._locks: list[FileLock] = []
        try:
            if shard is None:
                self._lock(path)
                for _, folder in shard_folders(path.parent):
                    if _lock_file(folder / path.name).exists():
                        self._lock(folder / path.name)
            else:
                whole = self._lock(path, PATIENCE)
                _refuse_others(path, shard)
                self._lock(self.path)
                self._locks.remove(whole)
                whole.release()
        except BaseException:
            self._release()
            raise
        for leftover in self.path.parent.glob(f".{self.path.name}.*.tmp"):
            leftover.unlink(missing_ok=True)
        remove_leftovers(parts_folder(self.path))
        highest = 0
        for part in reversed(parts_of(self.path)):  # a kill left parts beside the one that contains them
            highest = max(highest, part_number(part)[1])
            if part_number(part)[1] < highest:
                part.unlink()

    def _lock(self, path: Path, patience: float = 0) -> FileLock:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(_lock_file(path))
            lock.acquire(timeout=patience)
        except Timeout as error:
            raise SsrError(f"another process is writing {path}", "wait for it, or give another --work") from error
        except NotImplementedError as error:
            raise SsrError(f"cannot lock {path}: the file system has no locks", "choose another --work folder") from error
        except OSError as error:
            raise SsrError(f"cannot write {path}: {error.strerror}", "choose another --work folder") from error
        self._locks.append(lock)
        return lock

    def _release(self) -> None:
        while self._locks:
            self._locks.pop().release()

    def add(
        self,
        image_id: str,
        array: NDArray[Any],
        attributes: Mapping[str, Any] | None = None,
        *,
        compressed: bool = True,
    ) -> bool:
        """Add or replace one image; it is committed together with its part.

        Args:
            image_id: Id of the image.
            array: Its array.
            attributes: Values that JSON can hold, by name.
            compressed: Whether the array is compressed; for floats that are read often, compression costs more time than it
                saves.

        Returns:
            Whether the image was committed, with all before it.
        """
        self._pending[image_id] = (np.asarray(array), dict(attributes or {}), compressed)
        full = len(self._pending) >= self._part_images or sum(part[0].nbytes for part in self._pending.values()) >= PART_BYTES
        committed = full or time.monotonic() - self._since > self._part_seconds
        if committed:
            self.commit()
        return committed

    def commit(self) -> None:
        """Commit the open part."""
        self._since = time.monotonic()
        if not self._pending:
            return
        parts = parts_of(self.path)
        number = part_number(parts[-1])[0] + 1 if parts else 1
        with new_file(parts_folder(self.path) / f"{number:06d}.h5") as file:
            for image_id, (array, attributes, compressed) in sorted(self._pending.items()):
                write_array(file, image_id, array, attributes, compressed=compressed)
        self._pending.clear()
        self._unite()

    def clear(self) -> None:
        """Remove every committed image; without a shard, also those of all shards."""
        self._pending.clear()
        for file in files_of(self.path):
            file.unlink()
        if self._shard is None:
            self._remove_shards()

    def close(self, with_shards: bool = True) -> None:
        """Commit, merge all parts into the main file, and release the store.

        Args:
            with_shards: Whether shards are merged too, unless this writer is of one.
        """
        try:
            self.commit()
            parts, with_shards = parts_of(self.path), with_shards and self._shard is None
            if parts or (with_shards and any(True for _ in shard_stores(self.path))):
                with ArrayReader(self.path) if with_shards else ArrayReader.of_files(files_of(self.path)) as reader:
                    _merge(reader, self.path)
                for part in parts:
                    part.unlink()
            if with_shards:
                self._remove_shards()
            _remove_if_empty(parts_folder(self.path))
        finally:
            self._release()

    def _unite(self) -> None:
        """Merge many parts into one, and many merged parts into one again.

        All parts of the newest level are merged, so that a part that is older than one of a higher level is always contained in
        it. A run that was killed before a merge leaves more of them than `UNITE`.
        """
        while parts := parts_of(self.path):
            number, level = part_number(parts[-1])
            last = [part for part in parts if part_number(part)[1] == level]
            if len(last) < UNITE:
                return
            with ArrayReader.of_files(last) as reader:
                _merge(reader, parts_folder(self.path) / f"{number:06d}-{level + 1}.h5")
            for part in last:
                part.unlink()

    def _remove_shards(self) -> None:
        """Remove the files of shards. Their writers have ended, because they take the lock of the whole store first."""
        for _, folder in list(shard_folders(self.path.parent)):
            place = folder / self.path.name
            for file in [*files_of(place), _lock_file(place)]:
                file.unlink(missing_ok=True)
            for empty in (parts_folder(place), folder, folder.parent):
                _remove_if_empty(empty)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close(with_shards=kind is None)  # a refused run leaves the shards as they are


def _merge(reader: ArrayReader, target: Path) -> None:
    with new_file(target, needed=reader.size) as file:
        for number, (image_id, source) in enumerate(reader.sources(), start=1):
            with damage_of(source, image_id):
                found = stored(reader.dataset(image_id, source))
            write_stored(file, image_id, found)
            if number % REOPEN == 0:
                reader.reopen()


def _lock_file(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def _refuse_others(path: Path, shard: Shard) -> None:
    for other, _ in shard_stores(path):
        if other.count != shard.count:
            raise UsageError(
                f"{path} has shards of {other.count}, not of {shard.count}",
                f"`ssr merge --work {shlex.quote(str(path.parent))}` merges them, and any count works then; or --shard {other}",
            )


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()
