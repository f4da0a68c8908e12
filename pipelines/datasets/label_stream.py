"""A label file as a list of images that is read again in each pass, so that ten million rows are never held in memory."""

from __future__ import annotations

import hashlib
import itertools
import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray

from pipelines.datasets.base import Sample
from pipelines.datasets.classes import ClassList
from pipelines.datasets.label_files import iter_label_file, refuse_twice
from pipelines.datasets.label_rows import NameOf
from pipelines.datasets.names import image_id_of
from pipelines.errors import SsrError
from pipelines.stores.shard import Shard, id_hash

_DIGESTED = 1 << 14


class LabelStream(Sequence[Sample]):
    """The images of a label file, in its order.

    The constructor reads and checks every row once and keeps 4 bytes of each. Iterating reads the file again. Only indexing
    makes a list of it, which is kept.

    Args:
        path: The label file.
        classes: Class list.
        place: Maps an image id to the path of its image.
        orient: Whether images are turned as their EXIF says.
        name: Makes an image id of a path.

    Raises:
        UsageError: As in `label_files.read_label_file`.
    """

    def __init__(
        self,
        path: Path,
        classes: ClassList,
        place: Callable[[str], Path],
        orient: bool = False,
        name: NameOf = image_id_of,
    ) -> None:
        self._path = path
        self._classes = classes
        self._place = place
        self._orient = orient
        self._name = name
        hashes, lines = array("I"), []
        digest = hashlib.sha256(f"[{_json(classes.names)},[".encode())
        texts: dict[tuple[int, ...], str] = {}
        comma = ""
        for image_id, labels in self._read():
            hashes.append(id_hash(image_id))
            text = texts.get(labels) or texts.setdefault(labels, _json(labels))
            lines.append(
                f'["{image_id}",{text}]' if image_id.isascii() and '"' not in image_id else f"[{_json(image_id)},{text}]"
            )
            if len(lines) == _DIGESTED:
                digest.update((comma + ",".join(lines)).encode())
                comma = ","
                lines.clear()
        digest.update(((comma if lines else "") + ",".join(lines) + "]]").encode())
        self.digest = digest.hexdigest()
        self._hashes: NDArray[np.uint32] = np.frombuffer(hashes, dtype=np.uint32)
        self._refuse_twice()
        self._stamp = _stamp(path)

    def _refuse_twice(self) -> None:
        """Refuse duplicate ids. Equal ids have equal hashes, few others do, and only those are compared."""
        ordered = np.sort(self._hashes)
        shared = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
        if shared:
            suspects = (image_id for image_id, _ in self._read() if id_hash(image_id) in shared)
            twice = {image_id for image_id, count in Counter(suspects).items() if count > 1}
            if twice:
                refuse_twice(self._path, twice, self._name)

    def _read(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        return iter_label_file(self._path, self._classes, self._name)

    def __len__(self) -> int:
        return len(self._hashes)

    def lacks(self, image_ids: Iterable[str]) -> int:
        """Return how many of some ids have no row in the label file."""
        hashes: NDArray[np.uint32] = np.fromiter(map(id_hash, image_ids), dtype=np.uint32)
        return int((~np.isin(hashes, self._hashes)).sum())

    def count_of(self, shard: Shard) -> int:
        """Return the number of images of a shard."""
        return int(self._of(shard).sum())

    def __iter__(self) -> Iterator[Sample]:
        return self._samples(np.ones(len(self), dtype=bool))

    def share(self, shard: Shard) -> Iterator[Sample]:
        """Yield the images of a shard."""
        return self._samples(self._of(shard))

    def _of(self, shard: Shard) -> NDArray[np.bool_]:
        mine: NDArray[np.bool_] = self._hashes % np.uint32(shard.count) == shard.index
        return mine

    def _samples(self, wanted: NDArray[np.bool_]) -> Iterator[Sample]:
        if _stamp(self._path) != self._stamp:
            raise SsrError(f"{self._path} was changed while it was in use", "run the same command again")
        for image_id, labels in itertools.compress(self._read(), wanted):
            yield Sample(image_id, self._place(image_id), labels, self._orient)

    @overload
    def __getitem__(self, index: int) -> Sample: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Sample]: ...

    def __getitem__(self, index: int | slice) -> Sample | Sequence[Sample]:
        return self._list[index]

    @cached_property
    def _list(self) -> tuple[Sample, ...]:
        return tuple(self)


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def _stamp(path: Path) -> tuple[int, int]:
    state = path.stat()
    return state.st_size, state.st_mtime_ns
