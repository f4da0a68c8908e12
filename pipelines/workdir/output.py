"""One output of a stage during a run: opened, compared with what made it, started over, filled and recorded.

A stage opens its output before it loads a model. A run that is refused, or that has nothing to do, writes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from pipelines.datasets.base import Sample
from pipelines.datasets.image import fingerprint
from pipelines.errors import ImageError
from pipelines.execution.failures import Failures
from pipelines.execution.interruption import Interrupted, interrupted, refuse_if_interrupted, until_interrupted
from pipelines.execution.pool import usable
from pipelines.execution.progress import Progress
from pipelines.stores.array_reader import files_of
from pipelines.stores.array_store import ArrayReader, ArrayWriter, store_exists
from pipelines.stores.files import remove_leftovers
from pipelines.stores.mask_store import photo_of_mask, remove_masks
from pipelines.workdir.counts import Counts, ImageTally
from pipelines.workdir.memory import MEMORY, remember
from pipelines.workdir.record import Record

if TYPE_CHECKING:
    from pipelines.workdir.workspace import Workspace

Item = TypeVar("Item")
Photo = TypeVar("Photo")


@dataclass(frozen=True)
class Part:
    """What one manifest stands for.

    Attributes:
        stage: Stage name in the manifest.
        path: A store (``.h5``), a folder of label maps (no suffix) or a file; the manifest lies beside it.
        settings: Whatever changes it.
        others: More stores, folders and files that are made and started over with it.
    """

    stage: str
    path: Path
    settings: Mapping[str, Any]
    others: tuple[Path, ...] = ()

    @property
    def paths(self) -> tuple[Path, ...]:
        """All that is made."""
        return self.path, *self.others


class Output:
    """An output that a run fills; see `Workspace.output`, which makes one.

    Args:
        workspace: Whose images; its shard, ``force``, ``remembers``.
        parts: What is made. A later part is made from the earlier ones: with ``force``, those before the first one whose
            settings changed are kept.
        progress: Receives each image.
        prepare: Called before anything is written or removed, unless the output is finished: what it raises costs nothing
            that is there. The place to load models.
        again: With ``force``, start over although no setting changed.
        log: Name of the run in the failure log.

    Attributes:
        finished: It is complete, was made from the same settings and images, and is not started over.
    """

    def __init__(
        self,
        workspace: Workspace,
        parts: Sequence[Part],
        progress: Progress,
        *,
        prepare: Callable[[], object] | None = None,
        again: bool = True,
        log: str | None = None,
        place: Mapping[str, str] | None = None,
    ) -> None:
        self.finished = False
        self.progress = progress
        self._workspace, self._parts, self._prepare, self._again = workspace, parts, prepare, again
        self._log = log or parts[0].stage
        self._records = [
            Record(part.path, workspace.manifest(part.stage, dict(part.settings), place), workspace.shard) for part in parts
        ]
        self._paths = [path for part in parts for path in part.paths]
        self._writers: dict[Path, ArrayWriter] = {}
        self._committed: dict[Path, ArrayReader | tuple[()]] = {}
        self._numbers: dict[str, int] | None = None
        self._started = self._completed = False
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for path in self._paths:
                if _is_store(path):
                    self._writers[path] = stack.enter_context(ArrayWriter(path, shard=self._workspace.shard))
            self._settle()
            for path in self._paths:
                if _is_folder(path):
                    path.mkdir(parents=True, exist_ok=True)
                    if self._workspace.shard is None:  # else they may be those of other shards
                        remove_leftovers(path)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        kept = kind is None or issubclass(kind, Interrupted)
        if kept and self._started:
            self.progress.finish()
        self._stack.__exit__(*((None, None, None) if kept else (kind, error, trace)))
        if kept and not self._completed:
            if any(record.written for record in self._records):
                self._write(complete=not interrupted() and not self._workspace.no_images)
            if kind is None:
                refuse_if_interrupted()

    def _settle(self) -> None:
        """Compare, refuse, load what is needed, then start over and write the manifests."""
        workspace = self._workspace
        self._compare()
        if self._prepare is not None and not self.finished:
            self._prepare()
        with ExitStack() as locks:
            for record in self._records:
                record.remove_leftovers()
                if workspace.shard is not None:
                    locks.enter_context(record.lock())
            self._compare()  # another shard may have written in between
            if workspace.remembers:  # save the settings only after they were accepted
                if workspace.shard is None:
                    remove_leftovers(workspace.work, MEMORY)
                remember(workspace)
            changes = [bool(record.changed) for record in self._records]
            first = changes.index(True) if any(changes) else 0
            starts_over = workspace.force and (self._again or any(changes))
            for number, (record, part) in enumerate(zip(self._records, self._parts, strict=True)):
                # removed before the manifest is written: a kill in between must not pair old output with new settings
                if starts_over and number >= first:
                    self._clear(part)
                    record.finished = False
                    record.manifest.created = ""
                if not record.finished:
                    record.begin()

    def _compare(self) -> None:
        for record in self._records:
            record.compare()
        for record in self._records:
            record.refuse(self._workspace.force)
        again = self._workspace.force and self._again
        self.finished = not again and all(record.finished for record in self._records)

    def clear(self) -> None:
        """Start over although nothing asks for it: remove what was made; the manifest is written already."""
        self.begin()
        for part in self._parts:
            self._clear(part)

    def _clear(self, part: Part) -> None:
        for path in part.paths:
            if _is_store(path):
                self._writers[path].clear()
            elif _is_folder(path):
                remove_masks(path, self._workspace.shard)
            else:
                path.unlink(missing_ok=True)

    @property
    def writer(self) -> ArrayWriter:
        """The writer of the only store."""
        (writer,) = self._writers.values()
        return writer

    def writer_of(self, store: Path) -> ArrayWriter:
        """The writer of one of several stores."""
        return self._writers[store]

    def committed(self, store: Path) -> ArrayReader | tuple[()]:
        """What a store held when the run began, as far as it counts: with ``force``, a shard counts its own images alone."""
        if store not in self._committed:
            shard = self._workspace.shard
            if shard is not None and self._workspace.force:
                reader = self._stack.enter_context(ArrayReader(store, shard)) if files_of(shard.place(store)) else ()
            else:
                reader = self._stack.enter_context(ArrayReader(store)) if store_exists(store) else ()
            self._committed[store] = reader
        return self._committed[store]

    def holds(self, sample: Sample, *paths: Path) -> bool:
        """Whether an image is in these stores and folders already.

        Args:
            sample: The image.
            *paths: By default all that is made.
        """
        wanted = paths or self._paths
        there = all(
            sample.image_id in self.committed(path) if _is_store(path) else (path / f"{sample.image_id}.png").is_file()
            for path in wanted
        )
        return there and self._of_photo(sample, *wanted)

    def holds_labels(self, sample: Sample, *paths: Path) -> bool:
        """Whether an image is in these stores (by default all), made of the labels that it has now."""
        stores = paths or tuple(self._writers)
        return holds_labels(sample, *(self.committed(path) for path in stores)) and self._of_photo(sample, *stores)

    def _of_photo(self, sample: Sample, *paths: Path) -> bool:
        """Whether what stores and folders hold of an image was made of the photo that lies there now."""
        return not is_changed(sample, self.begun, (self._recorded(sample.image_id, path) for path in paths))

    def _recorded(self, image_id: str, path: Path) -> object:
        """The fingerprint of the photo that something was made of."""
        store = self.committed(path) if _is_store(path) else photo_of_mask(path / f"{image_id}.png")
        return store.attributes(image_id).get("photo") if isinstance(store, ArrayReader) else store

    @property
    def begun(self) -> float:
        """Seconds since 1970 at which the oldest part was begun; 0 if that is not known."""
        return min(record.begun for record in self._records)

    def todo(
        self,
        made: Callable[[Sample], bool] | None = None,
        samples: Collection[Sample] | None = None,
        title: str | None = None,
    ) -> Todo[Sample]:
        """The images that are still to be made, until the run is asked to stop. The work list is walked once and never held.

        Args:
            made: Whether an image is there already; it is counted as skipped. By default `holds`.
            samples: By default the workspace's share of the work list.
            title: Shown with the progress; by default the stage's name.
        """
        samples = self._workspace.samples if samples is None else samples
        _ = self.tally  # an image that failed last time is not listed twice
        self._started = True
        self.progress.start(title or self._parts[0].stage, len(samples))
        return Todo(self._unfinished(made or self.holds, samples))

    def _unfinished(self, made: Callable[[Sample], bool], samples: Iterable[Sample]) -> Iterator[Sample]:
        for sample in until_interrupted(samples):
            if made(sample):
                self.skipped()
            else:
                self.begin()
                yield sample

    def photos(self, load: Callable[[Sample], Photo], samples: Iterable[Sample]) -> Iterator[Photo]:
        """Decode photos in threads ahead of the consumer; bad ones are counted and left out."""
        return usable(load, samples, lambda sample, error: self.made(sample.image_id, error))

    def begin(self) -> None:
        """Let the manifests say that the output is not complete; call it before a finished output is changed."""
        for record in self._records:
            if not record.written:
                record.begin()

    def skipped(self) -> None:
        """Count an image that is there already."""
        self.tally.skipped()

    def made(self, image_id: str, error: ImageError | None = None) -> None:
        """Count an image that is finished, or a bad one.

        Raises:
            TooManyFailures: It was one bad image too many.
        """
        self.tally.made(image_id, error)

    @property
    def counts(self) -> Counts:
        """Images so far."""
        return self.tally.counts

    @cached_property
    def tally(self) -> ImageTally:
        """Counts images; lines that earlier runs left in the failure log are dropped when it is first asked for."""
        return self._workspace.tally(self._log, self.progress)

    @property
    def failures(self) -> Failures:
        """The failure log of this run."""
        return self.tally.failures

    def record(self, numbers: Mapping[str, int]) -> None:
        """Write how far a training has come; without images, these numbers take the place of `counts`."""
        self._numbers = dict(numbers)
        self._write(complete=False)

    def complete(self, numbers: Mapping[str, int]) -> None:
        """Write that a training is complete; a signal that comes later does not change this."""
        self._numbers = dict(numbers)
        self._write(complete=True)
        self._completed = True

    def _write(self, *, complete: bool) -> None:
        numbers = self.counts.as_dict() if self._numbers is None else self._numbers
        for record in self._records:
            if record.written or self._numbers is not None:
                record.write(complete=complete, counts=numbers)


class Todo(Iterator[Item]):
    """What is to be made; true if there is at least one item, which is then looked up ahead."""

    def __init__(self, items: Iterator[Item]) -> None:
        self._items = items
        self._ahead: list[Item] = []

    def __bool__(self) -> bool:
        if not self._ahead:
            self._ahead = list(islice(self._items, 1))
        return bool(self._ahead)

    def __next__(self) -> Item:
        return self._ahead.pop() if self._ahead else next(self._items)


def holds_labels(sample: Sample, *stores: ArrayReader | tuple[()]) -> bool:
    """Whether stores hold an image, made of the labels that it has now."""
    return all(
        isinstance(store, ArrayReader)
        and sample.image_id in store
        and store.attributes(sample.image_id).get("labels") == list(sample.labels)
        for store in stores
    )


def is_changed(sample: Sample, begun: float, recorded: Iterable[object]) -> bool:
    """Whether a photo was replaced after something was made of it.

    The file is read only if it was touched, moved or copied after that was begun; what holds no fingerprint passes.

    Args:
        sample: The image.
        begun: Seconds since 1970.
        recorded: Fingerprints of the photo that it was made of, looked up only if they are needed.
    """
    try:
        state = sample.image_path.stat()
    except OSError:  # what was made of it stays
        return False
    if max(state.st_mtime, state.st_ctime) < begun:
        return False
    found = ""
    for photo in recorded:
        if isinstance(photo, str) and photo:
            found = found or fingerprint(sample.image_path)
            if photo != found:
                return True
    return False


def _is_store(path: Path) -> bool:
    return path.suffix == ".h5"


def _is_folder(path: Path) -> bool:
    return not path.suffix
