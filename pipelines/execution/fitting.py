"""Work on batches that may exceed the memory; such a failure affects an image and not the run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import torch

from pipelines.errors import is_out_of_memory

Item = TypeVar("Item")
Result = TypeVar("Result")


def fitting(
    make: Callable[[Sequence[Item]], Result], batches: Iterable[Sequence[Item]], too_large: Callable[[Item], None]
) -> Iterator[Result]:
    """Yield the results of batches; a batch that exceeds the memory is worked on image by image.

    Args:
        make: Function of a batch; it must keep nothing if it fails.
        batches: Any iterable.
        too_large: Called with an item that exceeds the memory alone.
    """
    for batch in batches:
        try:
            made = [make(batch)]
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            made = []
        if made:
            yield made[0]
            continue
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if len(batch) > 1:
            yield from fitting(make, [[item] for item in batch], too_large)
        else:
            too_large(batch[0])
