"""A shard, which is a fixed share of the work list, and the place of its output.

A shard writes ``shards/I-of-N/`` beside the outputs of the whole: its own file for each store and manifest, so that workers
need no locks between them. Readers read the shards of a store together, and `ssr merge` merges them into one.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipelines.errors import UsageError

FOLDER = "shards"
_NAME = re.compile(r"(0|[1-9][0-9]{0,5})-of-([1-9][0-9]{0,5})")


@dataclass(frozen=True)
class Shard:
    """Share ``index`` of ``count`` shares.

    Attributes:
        index: Number of the share, from 0.
        count: Number of shares, at least 1.

    Raises:
        UsageError: There is no such share.
    """

    index: int
    count: int

    def __post_init__(self) -> None:
        """Check that the share exists."""
        if not 0 <= self.index < self.count <= 999_999:
            last = max(0, self.count - 1)
            raise UsageError(f"expected a shard from 0/{self.count} to {last}/{self.count}, found {self}", "--shard")

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read ``INDEX/COUNT``.

        Raises:
            UsageError: The text has another form, or there is no such share.
        """
        found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
        if not found:
            raise UsageError(f"expected a shard such as 0/4, found {text!r}", "--shard INDEX/COUNT")
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @property
    def name(self) -> str:
        """Folder name."""
        return f"{self.index}-of-{self.count}"

    def holds(self, image_id: str) -> bool:
        """Return whether an image is in this share. Only its id decides, so that images added later move no other."""
        return id_hash(image_id) % self.count == self.index

    def place(self, output: Path) -> Path:
        """Return the path of this shard's part of an output."""
        return output.parent / FOLDER / self.name / output.name


def id_hash(image_id: str) -> int:
    """Return CRC-32 of an id, the same on every machine and in every version."""
    return zlib.crc32(image_id.encode())


def own_place(output: Path, shard: Shard | None) -> Path:
    """Return the output itself, or the shard's part of it."""
    return output if shard is None else shard.place(output)


def shard_folders(folder: Path) -> Iterator[tuple[Shard, Path]]:
    """Yield the shards that have written beside the outputs in a folder, by number."""
    found = ((_NAME.fullmatch(path.name), path) for path in (folder / FOLDER).glob("*-of-*"))
    known = [(int(name[2]), int(name[1]), path) for name, path in found if name and int(name[1]) < int(name[2])]
    for count, index, path in sorted(known):
        yield Shard(index, count), path
