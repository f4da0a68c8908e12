"""Log of the images that could not be used; no other image replaces them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from pipelines.errors import ImageError, TooManyFailures
from pipelines.execution.progress import Progress
from pipelines.stores.files import atomic_path


class Failures:
    """Collector of one run's failures in ``failures.jsonl``.

    Args:
        path: Path of the log; lines of earlier runs of the same stage are dropped, those of other stages are kept.
        stage: Stage name, which each line records.
        limit: Number of images that may fail; the next one stops the run. -1 = any number.
        progress: Receives each failure.
    """

    def __init__(self, path: Path, stage: str, limit: int, progress: Progress) -> None:
        self.path = path
        self.stage = stage
        self.limit = limit
        self.count = 0
        self._progress = progress
        if path.is_file():
            write_failure_lines(path, [line for of, line in failure_lines(path) if of != stage])

    def add(self, image_id: str, error: ImageError) -> None:
        """Write one failure to the log.

        Raises:
            TooManyFailures: More images failed than the limit allows.
        """
        self.count += 1
        record = {"stage": self.stage, "image": image_id, "error": error.message, "hint": error.hint}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
        self._progress.note(f"{image_id}: {error}")
        if 0 <= self.limit < self.count:
            allowed = f"--max-failures allows {self.limit}"
            raise TooManyFailures(
                f"stopped at bad image {self.count} of this run: {image_id}: {error.message}; {allowed}",
                f"mend or remove it, or raise --max-failures; all are in {self.path}",
            )


def failure_lines(path: Path) -> list[tuple[str, str]]:
    """Return stage and line of each entry of a failure log; malformed lines get stage ``""``, a missing log gives []."""
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8", errors="backslashreplace")
    return [(_stage_of(line), line) for line in text.split("\n") if line]


def write_failure_lines(path: Path, lines: Iterable[str]) -> None:
    """Write a failure log; a failed write leaves the old one."""
    with atomic_path(path) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _stage_of(line: str) -> str:
    try:
        return str(json.loads(line).get("stage"))
    except (ValueError, AttributeError, RecursionError):
        return ""
