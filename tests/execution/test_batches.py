from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipelines.execution.batches import batches_by
from pipelines.execution.fitting import fitting

ITEMS = st.lists(st.integers(0, 5), max_size=60).map(lambda keys: [(key, number) for number, key in enumerate(keys)])


def _key(item: tuple[int, int]) -> int:
    return item[0]


@given(ITEMS, st.integers(1, 7), st.integers(0, 12))
def test_every_item_once_in_batches_of_one_key(items: list[tuple[int, int]], size: int, waiting: int) -> None:
    batches = list(batches_by(iter(items), _key, size, waiting))
    assert sorted(itertools.chain(*batches)) == sorted(items)
    for batch in batches:
        assert 1 <= len(batch) <= size
        assert len({_key(item) for item in batch}) == 1
    for key in {_key(item) for item in items}:  # items of one key keep their order
        numbers = [n for batch in batches for k, n in batch if k == key]
        assert numbers == sorted(numbers)
    if size == 1:
        assert batches == [[item] for item in items]


@given(ITEMS, st.integers(1, 5), st.integers(1, 10))
def test_no_more_than_waiting_are_held(items: list[tuple[int, int]], size: int, waiting: int) -> None:
    read = 0

    def counted() -> Iterator[tuple[int, int]]:
        nonlocal read
        for item in items:
            assert read - yielded <= waiting  # before another one is read
            read += 1
            yield item

    yielded = 0
    for batch in batches_by(counted(), _key, size, waiting):
        yielded += len(batch)
    assert yielded == len(items)


@given(st.integers(1, 5), st.integers(0, 300))
def test_one_key_gives_full_batches(size: int, count: int) -> None:
    lengths = [len(batch) for batch in batches_by(range(count), lambda _: 0, size)]
    assert lengths == [size] * (count // size) + [count % size] * (count % size > 0)


def test_the_fullest_goes_first_when_too_many_wait() -> None:
    assert list(batches_by("abbcd", str, 9, waiting=3)) == [["b", "b"], ["a"], ["c"], ["d"]]


@pytest.mark.parametrize("size", [1, 3])
def test_memory_is_bounded_by_default(size: int) -> None:
    taken = itertools.count()
    batches = batches_by(taken, lambda n: n, size)  # no two keys are equal, and no end
    assert [len(next(batches)) for _ in range(3)] == [1, 1, 1]
    assert next(taken) <= 8 * size + 4


ERRORS = [
    MemoryError(),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("HIP out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp] posix_memalign: Not enough memory: you tried to allocate 8589934592 bytes."),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 31.20 GiB"),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate"
    ),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_what_does_not_fit_is_left_out_and_nothing_else(error: Exception) -> None:
    left_out: list[int] = []

    def make(batch: Sequence[int]) -> list[int]:
        if 4 in batch or len(batch) > 3:
            raise error
        return [2 * item for item in batch]

    made = list(fitting(make, [[1, 2, 3], [3, 4, 5], [4], [6, 7, 8, 9]], left_out.append))
    assert made == [[2, 4, 6], [6], [10], [12], [14], [16], [18]]
    assert left_out == [4, 4]


def test_another_error_is_not_taken_for_memory() -> None:
    def make(batch: Sequence[int]) -> None:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        list(fitting(make, [[1]], lambda item: None))
