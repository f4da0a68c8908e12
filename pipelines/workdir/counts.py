"""Counts of the images of a run: made, skipped and left out."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from pipelines.errors import ImageError
from pipelines.execution.failures import Failures
from pipelines.execution.progress import Progress


@dataclass
class Counts:
    """Numbers of images of one run.

    Attributes:
        done: Images computed in this run.
        skipped: Images that an earlier run made with the same options.
        failed: Bad images left out; they are in ``failures.jsonl``.
    """

    done: int = 0
    skipped: int = 0
    failed: int = 0

    def as_dict(self) -> dict[str, int]:
        """Return the counts for the manifest."""
        return asdict(self)


class ImageTally:
    """A counter of the images of a run.

    Args:
        failures: Log of bad images.
        progress: Receives each image.

    Attributes:
        counts: Numbers so far.
        failures: The log.
    """

    def __init__(self, failures: Failures, progress: Progress) -> None:
        self.counts = Counts()
        self.failures = failures
        self._progress = progress

    def skipped(self) -> None:
        """Count an image whose result exists already."""
        self.counts.skipped += 1
        self._progress.skip()

    def made(self, image_id: str, error: ImageError | None = None) -> None:
        """Count an image that is finished, or a bad one.

        Raises:
            TooManyFailures: There are more bad images than allowed.
        """
        self._progress.advance()
        if error is None:
            self.counts.done += 1
        else:
            self.counts.failed += 1
            self.failures.add(image_id, error)
