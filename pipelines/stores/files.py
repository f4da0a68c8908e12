"""Files that are complete or absent: each is written as a temporary file in the same folder, synced and renamed."""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pipelines.errors import SsrError


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``target``; on success it becomes ``target``, on any error it is removed.

    Raises:
        SsrError: The folder cannot be written, or the disk is full.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
        os.close(handle)
    except OSError as error:
        raise SsrError(f"cannot write {target}: {error.strerror}", "choose another --work folder") from error
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(target)
    except (OSError, RuntimeError) as error:  # HDF5 raises either
        raise SsrError(f"cannot write {target}: {_reason(error)}", "free disk space or choose another --work") from error
    finally:
        with suppress(OSError):  # on a disk that has become read-only
            temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder beside ``target``; on success it replaces ``target``, on any error it is removed.

    Leftovers of killed runs beside it are removed, too.

    Args:
        target: The folder, which is replaced if it exists.

    Raises:
        SsrError: The folder cannot be written, the disk is full, or another process writes it.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(target.parent / f".{target.name}.lock", timeout=0)
        with lock:
            for old in target.parent.glob(f".{glob.escape(target.name)}.*.tmp"):
                shutil.rmtree(old, ignore_errors=True)
            folder, old = (target.parent / f".{target.name}.{name}.tmp" for name in ("new", "old"))
            folder.mkdir()
            try:
                yield folder
                if target.exists():
                    target.rename(old)
                folder.rename(target)
            finally:
                shutil.rmtree(folder, ignore_errors=True)
                shutil.rmtree(old, ignore_errors=True)
    except Timeout as error:
        raise SsrError(f"another process writes {target}", "wait for it, or give another --output") from error
    except OSError as error:
        raise SsrError(f"cannot write {target}: {_reason(error)}", "free disk space, or another --output") from error


def file_sha256(path: Path) -> str:
    """Return SHA-256 of a file as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_sha256(files: Iterable[tuple[str, Path]]) -> str:
    """Return SHA-256 over the names and contents of files, in this order, as hex."""
    content = hashlib.sha256()
    for name, path in files:
        content.update(f"{name}\0{file_sha256(path)}\n".encode())
    return content.hexdigest()


def _reason(error: Exception) -> str:
    """Return the reason why a file could not be written, in one line; libraries wrap the system's message in many."""
    wrapped = str(error)
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO):
        if os.strerror(number) in wrapped:
            return os.strerror(number)
    return (error.strerror if isinstance(error, OSError) else None) or " ".join(wrapped.split()) or type(error).__name__


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def write_json(target: Path, content: Any) -> None:
    """Write JSON with sorted keys, atomically."""
    with atomic_path(target) as temporary:
        temporary.write_text(json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        SsrError: The file is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SsrError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise SsrError(f"{path} is not valid JSON: {error}", "remove the file and run its stage again") from error


def remove_leftovers(folder: Path, stem: str = "*") -> None:
    """Remove temporary files of a killed run, all of them or those of one ``stem``. Only the folder's writer may do so."""
    for path in folder.glob(f".{stem}.*.tmp"):
        path.unlink(missing_ok=True)
