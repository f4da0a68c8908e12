"""Images that could not be used: written down, counted, never replaced by another."""

from __future__ import annotations

import json
from pathlib import Path

from pipelines.errors import ImageError, TooManyFailures
from pipelines.execution.progress import Progress
from pipelines.stores.files import atomic_path


class Failures:
    """Collects the failures of one run in ``failures.jsonl``.

    Args:
        path: The file; lines of earlier runs of the same stage are dropped, those of other stages are kept.
        stage: Stage name, written on each line.
        limit: Images that may fail; the next one stops the run. -1 = any number.
        progress: Told about each failure.
    """

    def __init__(self, path: Path, stage: str, limit: int, progress: Progress) -> None:
        self.path = path
        self.stage = stage
        self.limit = limit
        self.count = 0
        self._progress = progress
        if path.is_file():
            text = path.read_text(encoding="utf-8", errors="backslashreplace")
            others = [line for line in text.split("\n") if line and not _is_of(line, stage)]
            with atomic_path(path) as temporary:
                temporary.write_text("".join(line + "\n" for line in others), encoding="utf-8")

    def add(self, image_id: str, error: ImageError) -> None:
        """Write one failure down.

        Raises:
            TooManyFailures: It was one too many.
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


def _is_of(line: str, stage: str) -> bool:
    try:
        return bool(json.loads(line).get("stage") == stage)
    except (ValueError, AttributeError, RecursionError):
        return False
