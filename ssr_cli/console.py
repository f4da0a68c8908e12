"""Console output of ``ssr``: progress, errors and exit codes."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from pipelines.errors import SsrError
from pipelines.execution.interruption import EXIT_INTERRUPTED

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

EXIT_PARTLY = 3


@contextmanager
def reports_errors(debug: bool) -> Iterator[None]:
    """Turn errors into one line and an exit code: 2 usage, 1 failure. Tracebacks only with ``--debug``."""
    try:
        with _reports_failures(debug):
            yield
    except KeyboardInterrupt:  # also one that arrives while the line of an error is printed
        err.print("[bold yellow]stopped:[/] what was computed is kept; run the same command to go on")
        raise typer.Exit(EXIT_INTERRUPTED) from None


@contextmanager
def _reports_failures(debug: bool) -> Iterator[None]:
    try:
        yield
    except SsrError as error:
        if debug and error.exit_code != EXIT_INTERRUPTED:
            raise
        if error.exit_code == EXIT_INTERRUPTED:
            err.print(f"[bold yellow]{escape(error.message)}[/]; {escape(error.hint or '')}")
            raise typer.Exit(EXIT_INTERRUPTED) from None
        err.print(f"[bold red]error:[/] {escape(str(error))}")
        raise typer.Exit(error.exit_code) from None
    except (typer.Exit, typer.Abort):
        raise
    except Exception as error:
        if debug:
            raise
        where = f"{type(error).__name__}: {error}".splitlines()[0]
        err.print(f"[bold red]error:[/] unexpected {escape(where)} (run again with --debug and report what it prints)")
        raise typer.Exit(1) from None


def print_line(line: str) -> None:
    """Print a line to stderr, without markup."""
    print(line, file=sys.stderr, flush=True)


def print_from_signal(line: str) -> None:
    """Print a line to stderr from a signal handler: past `print`, which is not reentrant."""
    os.write(2, f"{line}\n".encode())


def next_step(command: str) -> None:
    """Print the next command."""
    out.print(f"[dim]next:[/] [bold]{escape(command)}[/]")


class ConsoleProgress:
    """Progress of a stage: a bar with rate and time left on a terminal, a line every 10 s elsewhere."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._title, self._total, self._done, self._skipped = "", 0, 0, 0
        self._unit = "images"
        self._started = self._last_line = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:  # after an error: the bar must not stay on the terminal
            self._bar.stop()

    def start(self, title: str, total: int, done: int = 0, unit: str = "images") -> None:
        """Begin a run of ``total`` images, of which ``done`` were finished before."""
        self._unit = unit
        self._title, self._total, self._done, self._skipped = title, total, done, done
        self._started = self._last_line = time.monotonic()
        if err.is_terminal:
            self._bar = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                console=err,
            )
            self._task = self._bar.add_task(title, total=total, completed=done, rate="")
            self._bar.start()
        else:
            existing = f", {done} already done" if done else ""
            print_line(f"{title}: {total} {unit}{existing}")

    def advance(self, count: int = 1) -> None:
        """Count finished images."""
        self._done += count
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, advance=count, rate=self._rate())
        elif time.monotonic() - self._last_line > 10:
            self._last_line = time.monotonic()
            print_line(f"{self._title}: {self._done}/{self._total}, {self._rate()}, {self._left()} left")

    def skip(self, count: int = 1) -> None:
        """Count images that were finished before; the rate leaves them out."""
        self._skipped += count
        self.advance(count)

    def note(self, message: str) -> None:
        """Print a warning beside the bar."""
        err.print(f"[yellow]{escape(message)}[/]")

    def status(self, message: str) -> None:
        """Print the state of a long run, such as its losses."""
        if self._bar is not None:
            self._bar.console.print(f"[dim]{escape(self._title)} {self._done}: {escape(message)}[/]")
        else:
            print_line(f"{self._title} {self._done}: {message}")

    def finish(self) -> None:
        """End the run."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        seconds = time.monotonic() - self._started
        existing = f", {self._skipped} already done" if self._skipped else ""
        print_line(f"{self._title}: {self._done}/{self._total} in {seconds:.1f} s, {self._rate()}{existing}")

    def _rate(self) -> str:
        seconds = time.monotonic() - self._started
        computed = self._done - self._skipped
        if 0 < computed < seconds:  # slower than one in a second
            return f"{seconds / computed:.1f} s/{self._unit.removesuffix('s')}"
        return f"{computed / seconds:.1f} {self._unit}/s" if seconds > 0 else ""

    def _left(self) -> str:
        computed = self._done - self._skipped
        seconds = (time.monotonic() - self._started) / computed * (self._total - self._done) if computed else 0
        return f"{seconds:.0f} s" if seconds < 180 else f"{seconds / 60:.0f} min"
