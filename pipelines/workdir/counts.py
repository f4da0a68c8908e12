"""What a stage's run came to."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass
class Counts:
    """Images of one run.

    Attributes:
        done: Computed now.
        skipped: There already, made with the same options.
        failed: Bad images left out; they are in ``failures.jsonl``.
    """

    done: int = 0
    skipped: int = 0
    failed: int = 0

    def as_dict(self) -> dict[str, int]:
        """For the manifest."""
        return asdict(self)
