"""A lock that lets only one process at a time write into a folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from pipelines.errors import SsrError
from pipelines.stores.files import remove_leftovers


@contextmanager
def one_writer(folder: Path, doing: str, patience: float = 0.0) -> Iterator[None]:
    """Hold a folder's lock within the block, and remove leftovers of a killed writer.

    Args:
        folder: Folder, which is made if it is missing.
        doing: Activity of another process, for the message.
        patience: Seconds to wait for the other process.

    Raises:
        SsrError: Another process writes, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        lock.acquire(timeout=patience)
    except Timeout as error:
        raise SsrError(f"another process is {doing} in {folder}", "wait for it, or give another --work") from error
    except OSError as error:
        raise SsrError(f"cannot write {folder}: {error.strerror}", "choose another --work folder") from error
    try:
        remove_leftovers(folder)
        yield
    finally:
        lock.release()
