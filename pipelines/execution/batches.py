"""Batches of images of one size, made without holding more than a few images."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def batches_by(items: Iterable[Item], key: Callable[[Item], Hashable], size: int, waiting: int = 0) -> Iterator[list[Item]]:
    """Yield lists of at most ``size`` items with equal keys.

    Args:
        items: Any iterable.
        key: Function whose value must be equal within a batch, such as the padded size.
        size: Largest number of items in a batch.
        waiting: Largest number of items in unfinished batches (default ``8 * size``); beyond that the fullest batch is yielded
            early, so that memory does not grow with the number of images or of sizes.

    Yields:
        Batches whose items keep their order. With ``size`` 1, the order of all items is kept.
    """
    waiting = waiting or 8 * size
    groups: dict[Hashable, list[Item]] = {}
    held = 0
    for item in items:
        group = groups.setdefault(key(item), [])
        group.append(item)
        held += 1
        full: Hashable | None = None
        if len(group) == size:
            full = key(item)
        elif held > waiting:
            full = max(groups, key=lambda name: len(groups[name]))
        if full is not None:
            batch = groups.pop(full)
            held -= len(batch)
            yield batch
    yield from groups.values()


def one_behind(made: Iterable[Item]) -> Iterator[Item]:
    """Yield each item after the next is made: while a GPU computes one batch, the host stores the batch before.

    An error in between is raised after the earlier items are yielded.
    """
    waiting: list[Item] = []
    try:
        for item in made:
            yield from waiting
            waiting = [item]
    except Exception:
        yield from waiting
        raise
    yield from waiting
