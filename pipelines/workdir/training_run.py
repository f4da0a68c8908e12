"""One training in a work directory: it is opened, resumed, saved, stopped and ended in one way for all models."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from pipelines.datasets.names import some
from pipelines.execution.devices import peak_memory
from pipelines.execution.failures import Failures
from pipelines.execution.interruption import interrupted
from pipelines.execution.progress import Progress, Silent
from pipelines.stores.checkpoint import read_checkpoint, write_checkpoint
from pipelines.stores.files import remove_leftovers
from pipelines.stores.manifest import digest
from pipelines.stores.one_writer import one_writer
from pipelines.training.processes import Processes
from pipelines.workdir.counts import Counts
from pipelines.workdir.output import Output
from pipelines.workdir.trained_photos import PHOTOS, note_photos, replaced_photos
from pipelines.workdir.workspace import Workspace


class TrainingRun:
    """Files, clock and counts of one training. Only the first process writes. Its context locks out other trainings.

    Args:
        workspace: The work directory.
        stage: Stage name; the folder ``WORK/STAGE`` holds the files beside the model.
        model: Path of the trained model; its manifest is beside it.
        processes: This process and its peers.
        progress: Receives each step.
        files: Files of the folder that belong to one training and are removed when it starts over.

    Attributes:
        folder: ``WORK/STAGE``.
        state: File that `save_state` writes.
        progress: Progress of the first process; silent in the others.
        counts: Steps done and skipped, images failed.
        settings: All settings that change the model, set by `open`.
    """

    def __init__(
        self,
        workspace: Workspace,
        stage: str,
        model: Path,
        processes: Processes,
        progress: Progress | None,
        files: Sequence[str],
    ) -> None:
        self.workspace, self.stage, self.model, self.processes = workspace, stage, model, processes
        self.folder = workspace.work / stage
        self.state = self.folder / "state.safetensors"
        self.progress = progress if progress and processes.first else Silent()
        self.counts = Counts()
        self.settings: dict[str, Any] = {}
        self._files = [self.folder / name for name in (*files, PHOTOS)]
        self._output: Output | None = None
        self._locked = False
        self._stack = ExitStack()
        self._started = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.__exit__(kind, error, trace)

    def lock(self) -> None:
        """Lock the folder against other trainings, and remove temporary files of a killed one; `open` does this, too.

        Raises:
            SsrError: Another training holds the lock.
        """
        if self.processes.first and not self._locked:
            self._stack.enter_context(one_writer(self.folder, "training"))
            self._locked = True
            remove_leftovers(self.workspace.work, self.model.stem)

    def open(self, settings: dict[str, Any], resume: str, load: Callable[[], object] | None = None) -> None:
        """Compare the settings with those of the existing training, and start over where the options say so.

        Args:
            settings: All settings that change the model.
            resume: ``never`` starts over even if the settings are the same.
            load: Loads the models and data for the steps, once. It is called before anything is written or removed, and not at
                all if the first process finds the training finished.

        Raises:
            UsageError: The settings changed and ``workspace.force`` is off.
            SsrError: Another training holds the lock.
        """
        self.settings = settings

        def prepare() -> None:  # what cannot be loaded leaves no file, not even a lock
            if load is not None:
                load()
            self.lock()

        if not self.processes.first:
            prepare()
            return
        output = self.workspace.output(self.stage, self.model, settings, self.progress, others=self._files, prepare=prepare)
        self._output = self._stack.enter_context(output)
        self.lock()
        if resume == "never":
            prepare()
            output.clear()
        self._look_at_photos(output)

    def _look_at_photos(self, output: Output) -> None:
        """Store the images of a training that begins; note those that were replaced since it began."""
        samples = self.workspace.dataset.samples
        if replaced := replaced_photos(self.folder, samples, output.begun):
            found = f"{len(replaced)} images were replaced after this training was begun: {some(replaced)}"
            self.progress.note(f"{found}; --force trains anew")
        elif not output.finished and not (self.folder / PHOTOS).is_file():
            note_photos(self.folder, samples)

    @property
    def owner(self) -> str:
        """Digest of the settings, stored in a state; a state of other settings is not resumed."""
        return digest(self.settings)

    @property
    def failures(self) -> Failures | None:
        """Return the log of bad images; None in all processes but the first."""
        return self._output.failures if self._output is not None else None

    def saved_state(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return tensors and note of the state that `save_state` wrote with these settings, or None.

        Raises:
            UsageError: The file is damaged.
        """
        if not self.state.is_file():
            return None
        tensors, note = read_checkpoint(self.state, "--resume never")
        return (tensors, note) if note.get("owner") == self.owner else None

    def save_state(self, tensors: dict[str, Tensor], **note: Any) -> None:
        """Write a state to resume from; only the first process does."""
        if self.processes.first:
            write_checkpoint(self.state, tensors, {"owner": self.owner, **note})

    def save(self, iteration: int, write_outputs: Callable[[], None], write_state: Callable[[], None]) -> None:
        """Write outputs, then the state, then the manifest; only the first process does.

        A training killed before the state is written repeats its steps since the last save, and writes the outputs again.
        """
        if self._output is not None:
            write_outputs()
            write_state()
            self._output.record({"iterations": iteration})

    def begin(self, iteration: int, iterations: int) -> None:
        """Start clock and progress at the present step; if steps are left, the training is recorded as incomplete."""
        if self._output is not None and iteration < iterations:
            self._output.begin()
        self.counts.skipped = iteration
        self.progress.start(self.stage, iterations, iteration, "steps")
        self._started = time.monotonic()

    def stepped(self) -> None:
        """Count a step."""
        self.counts.done += 1
        self.progress.advance()

    def stops(self) -> bool:
        """Return whether one of the processes was told to stop; all get the same answer at the same step."""
        return self.processes.any(interrupted())

    def end(self, device: torch.device, write_model: Callable[[], None], counts: dict[str, int], again: bool = False) -> None:
        """Report the speed, write the model if it is missing, and record the training as complete.

        Args:
            device: Device whose peak memory is reported.
            write_model: Writes `model`.
            counts: Counts for the manifest; those of a finished training without further steps are kept.
            again: Whether the model is written although it exists.
        """
        self.progress.finish()
        if self._output is None:
            return
        if self.counts.done:
            seconds = 1000 * (time.monotonic() - self._started) / self.counts.done
            self.progress.status(f"{seconds:.0f} s per 1,000 steps, {peak_memory(device)}")
        missing = not self.model.is_file()
        if again or missing:
            write_model()
        if self.counts.done or missing or not self._output.finished:
            self._output.complete(counts)
