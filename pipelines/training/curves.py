"""The curves of a training: a file with one JSON object per line, cut back to the step from which a training resumes."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines.errors import SsrError
from pipelines.stores.files import atomic_path

Line = dict[str, Any]

LOG_EVERY = 10
"""Number of steps whose mean is one line."""


class Curves:
    """A collector of means over several steps and of validation scores.

    Args:
        path: A ``.jsonl`` file.

    Attributes:
        lines: The lines that the file holds after `flush`; each has ``iteration``.
        waiting: Values of the latest steps, which make no full line yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: list[Line] = []
        self.waiting: list[Line] = []

    def open(self, iteration: int, waiting: Sequence[Line] = ()) -> None:
        """Read the lines up to a step. Later lines are dropped, because the resumed run makes them again.

        Args:
            iteration: The step.
            waiting: Values of steps before it that made no full line.

        Raises:
            SsrError: The file has a line that `flush` did not write.
        """
        self.lines, self.waiting = [], list(waiting)
        if self.path.is_file():
            for number, text in enumerate(self.path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
                line = _parsed(text)
                if line is None:
                    found = f"{self.path}, line {number}: expected JSON with an iteration and numbers, found {text[:40]!r}"
                    raise SsrError(found, "remove the file: the curves begin anew, the training goes on")
                if line["iteration"] <= iteration:
                    self.lines.append(line)

    def add(self, values: Line, iteration: int, end: bool) -> Line | None:
        """Add the values of one step.

        Every `LOG_EVERY` steps and at an ``end``, the means become a line, which is returned.

        Args:
            values: Losses and learning rates of the step.
            iteration: Steps done.
            end: Whether the state is saved at this step; the steps so far then make a line.

        Raises:
            SsrError: One of the values is not a number.
        """
        refuse_diverged(values, iteration)
        self.waiting.append(values)
        if not end and iteration % LOG_EVERY:
            return None
        mean = {key: sum(line[key] for line in self.waiting) / len(self.waiting) for key in values}
        self.waiting = []
        self.write({"iteration": iteration, **mean})
        return mean

    def write(self, line: Line) -> None:
        """Add a line."""
        self.lines.append(line)

    def flush(self) -> None:
        """Write the file, atomically."""
        with atomic_path(self.path) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in self.lines), encoding="utf-8")


def refuse_diverged(values: Line, iteration: int) -> None:
    """Stop a training whose losses are not finite, before its state is saved.

    Raises:
        SsrError: One of the values is not a number.
    """
    if bad := [key for key, value in values.items() if not math.isfinite(value)]:
        hint = "a lower --learning-rate, and --force to start over"
        raise SsrError(f"{' and '.join(bad)} of step {iteration} is not a number", hint)


def _parsed(text: str) -> Line | None:
    try:
        line = json.loads(text)
    except ValueError:
        return None
    sound = (
        isinstance(line, dict)
        and "iteration" in line
        and all(isinstance(value, int | float) for key, value in line.items() if key != "val_split")
    )
    return line if sound else None
