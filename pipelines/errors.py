"""Errors that a user can mend; the command line prints each as one line and picks the exit code."""

from __future__ import annotations


class SsrError(Exception):
    """An expected error: its message states what was expected, what was found and where.

    Args:
        message: One line.
        hint: What mends the error: a flag, a command or a file to bring.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message

    def __reduce__(self) -> tuple[type[SsrError], tuple[str, str | None]]:
        return type(self), (self.message, self.hint)  # keeps the hint between processes


class UsageError(SsrError):
    """The command line or a config file requests something impossible."""

    exit_code = 2


class ImageError(SsrError):
    """One image cannot be used; the run may continue without it (``--max-failures``)."""


class TooManyFailures(SsrError):  # noqa: N818 - it counts errors, it is not one more
    """More images failed than ``--max-failures`` allows."""


_OUT_OF_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "alloc_failed", "failed to allocate")
"""Parts of the messages of allocators and libraries, in small letters. That of ``torch.OutOfMemoryError`` is among them."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory is used up, on a CPU or a GPU."""
    said = str(error).lower()
    return isinstance(error, MemoryError) or any(words in said for words in _OUT_OF_MEMORY)
