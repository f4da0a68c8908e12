"""One output of a stage during a run: it is opened, compared with its manifest, started over, filled and recorded.

A stage opens its output before it loads a model. A run that is refused or has nothing to do writes nothing.
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
from pipelines.stores.manifest import WORK_FILE
from pipelines.stores.mask_store import photo_of_mask, remove_masks
from pipelines.workdir.counts import Counts, ImageTally
from pipelines.workdir.memory import remember
from pipelines.workdir.record import Record

if TYPE_CHECKING:
    from pipelines.workdir.workspace import Workspace

Item = TypeVar("Item")
Photo = TypeVar("Photo")


@dataclass(frozen=True)
class Part:
    """The files that one manifest describes.

    Attributes:
        stage: Stage name in the manifest.
        path: A store (``.h5``), a folder of label maps (no suffix) or a file; the manifest is beside it.
        settings: All settings that change it.
        others: Further stores, folders and files that are made and started over with it.
    """

    stage: str
    path: Path
    settings: Mapping[str, Any]
    others: tuple[Path, ...] = ()

    @property
    def paths(self) -> tuple[Path, ...]:
        """All paths that are written."""
        return self.path, *self.others


class Output:
    """An output that a run fills; `Workspace.output` makes one.

    Args:
        workspace: Names the images; its ``shard``, ``force`` and ``remembers`` are used.
        parts: The parts of the output. A later part is made from the earlier ones; with ``force``, the parts before the first
            one whose settings changed are kept.
        progress: Receives each image.
        prepare: Called before anything is written or removed, unless the output is finished, so that its errors do not cost any
            existing result. Models are loaded here.
        again: Whether ``force`` starts over although no setting changed.
        log: Name of the run in the failure log.

    Attributes:
        finished: Whether it is complete, was made from the same settings and images, and is not started over.
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
                    if self._workspace.shard is None:  # otherwise they may be those of other shards
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
        """Compare the settings, refuse or prepare, then start over and write the manifests."""
        workspace = self._workspace
        self._compare()
        if self._prepare is not None and not self.finished:
            self._prepare()
        with ExitStack() as locks:
            for record in self._records:
                record.remove_leftovers()
                if workspace.shard is not None:
                    locks.enter_context(record.lock())
            self._compare()  # again, because another shard may have written in between
            if workspace.remembers:  # save the settings only after they were accepted
                if workspace.shard is None:
                    remove_leftovers(workspace.work, WORK_FILE)
                remember(workspace)
            changes = [bool(record.changed) for record in self._records]
            first = changes.index(True) if any(changes) else 0
            starts_over = workspace.force and (self._again or any(changes))
            for number, (record, part) in enumerate(zip(self._records, self._parts, strict=True)):
                # removed before the manifest is written, so that a kill in between cannot pair old output with new settings
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
        """Start over by request: remove what was made; the manifest is written already."""
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
        """Return the writer of the only store."""
        (writer,) = self._writers.values()
        return writer

    def writer_of(self, store: Path) -> ArrayWriter:
        """Return the writer of one of several stores."""
        return self._writers[store]

    def committed(self, store: Path) -> ArrayReader | tuple[()]:
        """Return a reader of what a store held at the start of the run; with ``force``, a shard reads its own images alone."""
        if store not in self._committed:
            shard = self._workspace.shard
            if shard is not None and self._workspace.force:
                reader = self._stack.enter_context(ArrayReader(store, shard)) if files_of(shard.place(store)) else ()
            else:
                reader = self._stack.enter_context(ArrayReader(store)) if store_exists(store) else ()
            self._committed[store] = reader
        return self._committed[store]

    def holds(self, sample: Sample, *paths: Path) -> bool:
        """Return whether an image is in these stores and folders already.

        Args:
            sample: The image.
            *paths: Stores and folders; by default all of them.
        """
        wanted = paths or self._paths
        there = all(
            sample.image_id in self.committed(path) if _is_store(path) else (path / f"{sample.image_id}.png").is_file()
            for path in wanted
        )
        return there and self._of_photo(sample, *wanted)

    def holds_labels(self, sample: Sample, *paths: Path) -> bool:
        """Return whether an image is in these stores (by default all), made with its present labels."""
        stores = paths or tuple(self._writers)
        return holds_labels(sample, *(self.committed(path) for path in stores)) and self._of_photo(sample, *stores)

    def _of_photo(self, sample: Sample, *paths: Path) -> bool:
        """Return whether stores and folders were made of the image's present file."""
        return not is_changed(sample, self.begun, (self._recorded(sample.image_id, path) for path in paths))

    def _recorded(self, image_id: str, path: Path) -> object:
        """Return the fingerprint of the image that a result was made of."""
        store = self.committed(path) if _is_store(path) else photo_of_mask(path / f"{image_id}.png")
        return store.attributes(image_id).get("photo") if isinstance(store, ArrayReader) else store

    @property
    def begun(self) -> float:
        """Return the time in seconds since 1970 at which the oldest part was begun; 0 if it is unknown."""
        return min(record.begun for record in self._records)

    def todo(
        self,
        made: Callable[[Sample], bool] | None = None,
        samples: Collection[Sample] | None = None,
        title: str | None = None,
    ) -> Todo[Sample]:
        """Iterate over the images that are still to be made, until the run is told to stop, without holding the work list.

        Args:
            made: Returns whether an image is made already, which counts it as skipped; by default `holds`.
            samples: Images; by default the workspace's share of the work list.
            title: Title of the progress; by default the stage's name.
        """
        samples = self._workspace.samples if samples is None else samples
        _ = self.tally  # loads the tally, so that an image that failed before is not listed again
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
        """Decode images in threads in advance; bad ones are counted and left out."""
        return usable(load, samples, lambda sample, error: self.made(sample.image_id, error))

    def begin(self) -> None:
        """Write in the manifests that the output is incomplete; to be called before a finished output is changed."""
        for record in self._records:
            if not record.written:
                record.begin()

    def skipped(self) -> None:
        """Count an image whose result exists already."""
        self.tally.skipped()

    def made(self, image_id: str, error: ImageError | None = None) -> None:
        """Count an image that is finished, or a bad one.

        Raises:
            TooManyFailures: There are more bad images than allowed.
        """
        self.tally.made(image_id, error)

    @property
    def counts(self) -> Counts:
        """Counts of the images so far."""
        return self.tally.counts

    @cached_property
    def tally(self) -> ImageTally:
        """The counter of images; its first use removes the lines of earlier runs from the failure log."""
        return self._workspace.tally(self._log, self.progress)

    @property
    def failures(self) -> Failures:
        """The failure log of this run."""
        return self.tally.failures

    def record(self, numbers: Mapping[str, int]) -> None:
        """Write the progress of a training; without images, these numbers replace `counts`."""
        self._numbers = dict(numbers)
        self._write(complete=False)

    def complete(self, numbers: Mapping[str, int]) -> None:
        """Write that a training is complete; a later signal does not change this."""
        self._numbers = dict(numbers)
        self._write(complete=True)
        self._completed = True

    def _write(self, *, complete: bool) -> None:
        numbers = self.counts.as_dict() if self._numbers is None else self._numbers
        for record in self._records:
            if record.written or self._numbers is not None:
                record.write(complete=complete, counts=numbers)


class Todo(Iterator[Item]):
    """The items to be made. Its truth value looks up the first item in advance."""

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
    """Return whether stores hold an image, made with its present labels."""
    return all(
        isinstance(store, ArrayReader)
        and sample.image_id in store
        and store.attributes(sample.image_id).get("labels") == list(sample.labels)
        for store in stores
    )


def is_changed(sample: Sample, begun: float, recorded: Iterable[object]) -> bool:
    """Return whether an image was replaced after something was made of it.

    The file is read only if it was touched, moved or copied since; results without fingerprint count as unchanged.

    Args:
        sample: The image.
        begun: Time in seconds since 1970 at which the result was begun.
        recorded: Fingerprints of the image in the results, looked up only if they are needed.
    """
    try:
        state = sample.image_path.stat()
    except OSError:  # without its file, the result is kept
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
