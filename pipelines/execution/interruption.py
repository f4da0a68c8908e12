"""Interruption of a run: the first signal lets it finish its current work, the second one ends it at once."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn, TypeVar

from pipelines.errors import SsrError

Item = TypeVar("Item")

EXIT_INTERRUPTED = 130
SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""The signals of Ctrl-C, and of torchrun, Slurm and `kill`."""

RELAYED = 2.0
"""Seconds during which a launcher may relay a signal that its processes received themselves, as another signal."""

_asked = threading.Event()


class Interrupted(SsrError):  # noqa: N818 - a request, not a fault
    """A run ended early on request; everything that it computed is committed."""

    exit_code = EXIT_INTERRUPTED


def interrupted() -> bool:
    """Return whether this process was told to stop."""
    return _asked.is_set()


def ask_to_stop() -> None:
    """Let this process finish its current work and stop, as a signal does."""
    _asked.set()


def until_interrupted(items: Iterable[Item]) -> Iterator[Item]:
    """Yield the items until this process is told to stop."""
    for item in items:
        if _asked.is_set():
            return
        yield item


def refuse_if_interrupted(hint: str = "run the same command to go on") -> None:
    """End a run that was told to stop, once its output is committed.

    Args:
        hint: What makes the rest.

    Raises:
        Interrupted: The run was told to stop.
    """
    if _asked.is_set():
        refuse_interrupted(hint)


def refuse_interrupted(hint: str = "run the same command to go on") -> NoReturn:
    """End a run in which this or another process was told to stop.

    Args:
        hint: What makes the rest.

    Raises:
        Interrupted: Always.
    """
    raise Interrupted("stopped: what was computed is kept", hint)


@contextmanager
def finishing_on_signals(say: Callable[[str], None]) -> Iterator[None]:
    """Make `interrupted` true on a signal within the block; a second signal ends the process, and stores stay valid.

    A different signal within 2 s is a launcher's relay of the first, and is ignored: on Ctrl-C torchrun sends SIGTERM to its
    processes, which received the Ctrl-C themselves. Processes that are forked in the block leave Ctrl-C to this one.

    Args:
        say: Called with each message.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    first: tuple[int, float] | None = None
    ours = os.getpid()

    def handle(number: int, _frame: FrameType | None) -> None:
        nonlocal first
        if os.getpid() != ours:
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return
        if first is not None and number != first[0] and time.monotonic() - first[1] < RELAYED:
            return
        if _asked.is_set():
            say("stopped at once: images of the last seconds may be missing; run the same command to go on")
            os._exit(EXIT_INTERRUPTED)
        _asked.set()
        first = (number, time.monotonic())
        say(f"{signal.Signals(number).name}: finishing what is under way; once more stops at once")

    before = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _asked.clear()
