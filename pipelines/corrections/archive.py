"""Zip files of other tools, which are read entry by entry and never unpacked to disk."""

from __future__ import annotations

import stat
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines.corrections.base import MAX_BYTES
from pipelines.errors import SsrError

MAX_ENTRIES = 1_000_000
MAX_PICTURE = 1 << 28
"""Largest size of a PNG in bytes."""


class Archive:
    """A zip whose entries have safe names.

    Args:
        path: Path, for messages.
        archive: The zip, open for reading.

    Raises:
        SsrError: An entry leads out of the zip, is no plain file, occurs twice or is encrypted.
    """

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self.path, self._archive = path, archive
        entries = archive.infolist()
        if len(entries) > MAX_ENTRIES:
            raise SsrError(f"{path}: expected at most {MAX_ENTRIES:,} entries, found {len(entries):,}")
        self._entries: dict[str, zipfile.ZipInfo] = {}
        for entry in entries:
            name, kind = entry.filename, stat.S_IFMT(entry.external_attr >> 16)
            parts = name.rstrip("/").split("/")
            if name.startswith("/") or "\\" in name or ":" in parts[0] or any(part in {"", ".", ".."} for part in parts):
                raise SsrError(f"{path}: entry {name!r:.80} leads out of the zip")
            if kind not in {0, stat.S_IFREG, stat.S_IFDIR} or entry.flag_bits & 1:
                raise SsrError(f"{path}: entry {name!r:.80} is a link, a device or encrypted")
            if name in self._entries:
                raise SsrError(f"{path}: entry {name!r:.80} occurs twice")
            if not entry.is_dir():
                self._entries[name] = entry

    def names(self, folder: str = "", suffix: str = "") -> Iterator[str]:
        """Yield the names of files below a folder, in the order of the zip."""
        return (name for name in self._entries if name.startswith(folder) and name.lower().endswith(suffix))

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def read(self, name: str, limit: int = MAX_BYTES) -> bytes:
        """Return the content of an entry.

        Raises:
            SsrError: The entry is too large or damaged.
        """
        entry = self._entries[name]
        try:
            with self._archive.open(entry) as file:
                content = file.read(limit + 1)
        except (zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
            raise SsrError(f"{self.path}: entry {name!r:.80} is damaged: {error!s:.120}") from None
        if len(content) > limit:
            raise SsrError(f"{self.path}: entry {name!r:.80}: expected at most {limit:,} bytes, found more")
        return content


@contextmanager
def open_archive(path: Path) -> Iterator[Archive]:
    """Open a zip.

    Raises:
        SsrError: The file is no zip, or an entry has an unsafe name.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            yield Archive(path, archive)
    except (zipfile.BadZipFile, zlib.error, EOFError, UnicodeDecodeError, NotImplementedError, ValueError) as error:
        raise SsrError(f"{path}: broken zip: {error!s:.120}") from None
    except OSError as error:
        raise SsrError(f"{path}: cannot read: {error.strerror or error}") from None
