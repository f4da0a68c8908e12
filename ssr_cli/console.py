"""How ``ssr`` speaks: progress, tables, errors and exit codes."""

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
        yield
    except SsrError as error:
        if debug and error.exit_code != EXIT_INTERRUPTED:
            raise
        if error.exit_code == EXIT_INTERRUPTED:
            err.print(f"[bold yellow]{escape(error.message)}[/]; {escape(error.hint or '')}")
            raise typer.Exit(EXIT_INTERRUPTED) from None
        err.print(f"[bold red]error:[/] {escape(str(error))}")
        raise typer.Exit(error.exit_code) from None
    except KeyboardInterrupt:
        err.print("[bold yellow]stopped:[/] what was computed is kept; run the same command to go on")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except (typer.Exit, typer.Abort):
        raise
    except Exception as error:
        if debug:
            raise
        where = f"{type(error).__name__}: {error}".splitlines()[0]
        err.print(f"[bold red]error:[/] unexpected {escape(where)} (run again with --debug and report what it prints)")
        raise typer.Exit(1) from None


def say(line: str) -> None:
    """A plain line."""
    print(line, file=sys.stderr, flush=True)


def say_amid(line: str) -> None:
    """A plain line from a signal handler: it may have come amid a `print`, which cannot be entered twice."""
    os.write(2, f"{line}\n".encode())


def next_step(command: str) -> None:
    """Print the one obvious next command."""
    out.print(f"[dim]next:[/] [bold]{escape(command)}[/]")


class ConsoleProgress:
    """A stage's progress: a bar with rate and time left on a terminal, a plain line now and then elsewhere."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._title, self._total, self._done, self._before = "", 0, 0, 0
        self._unit = "images"
        self._started = self._spoken = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:  # an error ended the run: give the terminal back
            self._bar.stop()

    def start(self, title: str, total: int, done: int = 0, unit: str = "images") -> None:
        """Begin a run of ``total`` images, ``done`` of them there already."""
        self._unit = unit
        self._title, self._total, self._done, self._before = title, total, done, done
        self._started = self._spoken = time.monotonic()
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
            known = f", {done} there already" if done else ""
            say(f"{title}: {total} {unit}{known}")

    def advance(self, count: int = 1) -> None:
        """Count finished images."""
        self._done += count
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, advance=count, rate=self._rate())
        elif time.monotonic() - self._spoken > 10:
            self._spoken = time.monotonic()
            say(f"{self._title}: {self._done}/{self._total}, {self._rate()}, {self._left()} left")

    def skip(self, count: int = 1) -> None:
        """Count images that are there already; the rate is that of the others."""
        self._before += count
        self.advance(count)

    def note(self, message: str) -> None:
        """Say something beside the bar."""
        err.print(f"[yellow]{escape(message)}[/]")

    def status(self, message: str) -> None:
        """Say how it goes."""
        if self._bar is not None:
            self._bar.console.print(f"[dim]{escape(self._title)} {self._done}: {escape(message)}[/]")
        else:
            say(f"{self._title} {self._done}: {message}")

    def finish(self) -> None:
        """End the run."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        seconds = time.monotonic() - self._started
        known = f", {self._before} there already" if self._before else ""
        say(f"{self._title}: {self._done}/{self._total} in {seconds:.1f} s, {self._rate()}{known}")

    def _rate(self) -> str:
        seconds = time.monotonic() - self._started
        return f"{(self._done - self._before) / seconds:.1f} {self._unit}/s" if seconds > 0 else ""

    def _left(self) -> str:
        made = self._done - self._before
        seconds = (time.monotonic() - self._started) / made * (self._total - self._done) if made else 0
        return f"{seconds:.0f} s"
