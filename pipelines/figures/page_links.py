"""One of several HTML pages that lie beside one another: its file name and the links to its neighbours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class PageOf:
    """A page's place.

    Attributes:
        number: From 1.
        count: How many pages there are.
    """

    number: int = 1
    count: int = 1

    def name(self, stem: str, suffix: str) -> str:
        """File name of something of this page; that of the first page has no number."""
        return (stem if self.number == 1 else f"{stem}-{self.number}") + suffix

    @property
    def file(self) -> str:
        """File name of the page."""
        return self.name("index", ".html")

    @property
    def links(self) -> str:
        """HTML with links to the pages before and after this one; empty if there is no other."""
        if self.count == 1:
            return ""
        before, after = (PageOf(self.number + by, self.count) for by in (-1, 1))
        found = [f'<a rel="prev" href="{before.file}">previous page</a>'] if self.number > 1 else []
        found += [f'<a rel="next" href="{after.file}">next page</a>'] if self.number < self.count else []
        return f"<nav>{' '.join(found)}</nav>"


ONLY = PageOf()


def pages(rows: Sequence[T], size: int) -> Iterator[tuple[PageOf, Sequence[T]]]:
    """Share rows out to pages of at most ``size``; no rows are one empty page."""
    count = max(1, -(-len(rows) // size))
    for number in range(1, count + 1):
        yield PageOf(number, count), rows[(number - 1) * size : number * size]


def remove_further(folder: Path, count: int) -> None:
    """Remove the pages after the first ``count`` that an earlier run has written to a folder."""
    number = count + 1
    while (path := folder / PageOf(number).file).exists():
        path.unlink()
        number += 1
