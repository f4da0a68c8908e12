"""How a stage tells how far it is; the command line draws it, tests count it, the default is silence."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Receives a stage's progress. One `start` and one `finish` around any number of `advance` and `note`."""

    def start(self, title: str, total: int, done: int = 0, unit: str = "images") -> None:
        """A run of ``total`` images (or other units) begins, of which ``done`` were there already."""

    def advance(self, count: int = 1) -> None:
        """More images are finished, well or not."""

    def note(self, message: str) -> None:
        """Something that a person should read: a bad image, a choice that was made."""

    def status(self, message: str) -> None:
        """How it goes, in numbers; the newest one counts."""

    def finish(self) -> None:
        """The run is over."""


class Silent:
    """Progress that nobody watches."""

    def start(self, title: str, total: int, done: int = 0, unit: str = "images") -> None:
        """Ignore."""

    def advance(self, count: int = 1) -> None:
        """Ignore."""

    def note(self, message: str) -> None:
        """Ignore."""

    def status(self, message: str) -> None:
        """Ignore."""

    def finish(self) -> None:
        """Ignore."""
