"""Errors that a person can act on; the command line prints them as one line and picks the exit code."""

from __future__ import annotations


class SsrError(Exception):
    """Something expected went wrong: the message says what was expected, what was found and where.

    Args:
        message: One line.
        hint: What mends it: a flag, a command or a file to bring.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message

    def __reduce__(self) -> tuple[type[SsrError], tuple[str, str | None]]:
        return type(self), (self.message, self.hint)  # crosses process pools with its hint


class UsageError(SsrError):
    """The command line or a config file asks for something that cannot be."""

    exit_code = 2


class ImageError(SsrError):
    """One image cannot be used; the run may go on without it (``--max-failures``)."""


class TooManyFailures(SsrError):  # noqa: N818 - it counts errors, it is not one more
    """More images failed than ``--max-failures`` allows."""
