"""One run over the work list of a stage that takes image by image: what is to do, what came of it, and when to stop."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from pipelines.datasets.base import Sample
from pipelines.errors import ImageError
from pipelines.execution.interruption import until_interrupted
from pipelines.execution.progress import Progress
from pipelines.workdir.counts import Counts
from pipelines.workdir.workspace import Workspace


class Run:
    """Counts the images of a run. The work list is walked once and never held.

    Args:
        workspace: Whose share of the work list.
        name: Of the stage, in the failure log.
        progress: Told about each image.

    Attributes:
        counts: So far.
    """

    def __init__(self, workspace: Workspace, name: str, progress: Progress) -> None:
        self.counts = Counts()
        self._samples = workspace.samples
        self._failures = workspace.failures(name, progress)
        self._progress = progress

    def unfinished(self, there: Callable[[Sample], bool]) -> Iterator[Sample]:
        """Images that are still to be made, until the run is asked to stop.

        Args:
            there: Whether an image is there already; it is counted as skipped.
        """
        for sample in until_interrupted(self._samples):
            if there(sample):
                self.skipped()
            else:
                yield sample

    def skipped(self) -> None:
        """Count an image that is there already."""
        self.counts.skipped += 1
        self._progress.skip()

    def made(self, image_id: str, error: ImageError | None = None) -> None:
        """Count an image that is finished, or a bad one.

        Raises:
            TooManyFailures: It was one bad image too many.
        """
        self._progress.advance()
        if error is None:
            self.counts.done += 1
        else:
            self.counts.failed += 1
            self._failures.add(image_id, error)
