"""Progress of a stage: the command line draws it, tests count it, and the default ignores it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol


class Progress(Protocol):
    """Receiver of a stage's progress: one `start`, then any number of other calls, then one `finish`."""

    def start(self, title: str, total: int, done: int = 0, unit: str = "images") -> None:
        """Begin a run of ``total`` images (or other units), of which ``done`` were finished before."""

    def advance(self, count: int = 1) -> None:
        """Count images that are finished or have failed."""

    def skip(self, count: int = 1) -> None:
        """Count images that were finished before."""

    def note(self, message: str) -> None:
        """Show a message to the user, such as a bad image or an automatic choice."""

    def status(self, message: str) -> None:
        """Show current numbers, such as losses; a later line replaces them."""

    def finish(self) -> None:
        """End the run."""


class Silent:
    """A progress that ignores all calls."""

    def start(self, title: str, total: int, done: int = 0, unit: str = "images") -> None:
        """Ignore."""

    def advance(self, count: int = 1) -> None:
        """Ignore."""

    def skip(self, count: int = 1) -> None:
        """Ignore."""

    def note(self, message: str) -> None:
        """Ignore."""

    def status(self, message: str) -> None:
        """Ignore."""

    def finish(self) -> None:
        """Ignore."""


Message = tuple[str, Any]
"""Name of a method of `Progress`, and its arguments."""


class RemoteProgress:
    """A progress that sends its calls to another process, where `JoinedProgress` receives them.

    Args:
        send: Sends one message.
    """

    def __init__(self, send: Callable[[Message], None]) -> None:
        self._send = send

    def start(self, title: str, total: int, done: int = 0, unit: str = "images") -> None:
        """Send."""
        self._send(("start", (title, total, done, unit)))

    def advance(self, count: int = 1) -> None:
        """Send."""
        self._send(("advance", (count,)))

    def skip(self, count: int = 1) -> None:
        """Send."""
        self._send(("skip", (count,)))

    def note(self, message: str) -> None:
        """Send."""
        self._send(("note", (message,)))

    def status(self, message: str) -> None:
        """Send."""
        self._send(("status", (message,)))

    def finish(self) -> None:
        """Do nothing, because the run ends with its last process."""


class JoinedProgress:
    """The joined progress of several processes.

    Args:
        progress: Receives the joined progress.
        count: Number of processes. The run begins once each has started or ended, because its total is known then.
    """

    def __init__(self, progress: Progress, count: int) -> None:
        self._progress = progress
        self._unknown = set(range(count))
        self._begun: tuple[str, str] | None = None
        self._total = self._done = 0
        self._held: list[Message] = []
        self._notes: set[str] = set()
        self._started = False

    def receive(self, number: int, kind: str, arguments: Any) -> None:
        """Handle a message from the `RemoteProgress` of a process."""
        if kind == "start":
            title, total, done, unit = arguments
            self._begun = self._begun or (title, unit)
            self._total += total
            self._done += done
            self.count_in(number)
        elif self._started or kind in {"note", "status"}:
            self._pass_on(kind, arguments)
        else:
            self._held.append((kind, arguments))

    def count_in(self, number: int) -> None:
        """Mark that the total of a process is known, or that the process has ended."""
        self._unknown.discard(number)
        if not self._unknown and self._begun is not None and not self._started:
            self._started = True
            title, unit = self._begun
            self._progress.start(title, self._total, self._done, unit)
            for kind, arguments in self._held:
                self._pass_on(kind, arguments)

    def finish(self) -> None:
        """End the run after all processes have ended."""
        if self._started:
            self._progress.finish()

    def _pass_on(self, kind: str, arguments: Any) -> None:
        if kind == "note":
            if arguments[0] in self._notes:  # all processes send the same notes
                return
            self._notes.add(arguments[0])
        getattr(self._progress, kind)(*arguments)
