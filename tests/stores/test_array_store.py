from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from pipelines.errors import SsrError
from pipelines.stores.array_store import ArrayReader, ArrayWriter, iter_records, store_exists


def _array(number: int) -> NDArray[np.float32]:
    return np.random.default_rng(number).random((3, 4), np.float32)


def _fill(path: Path, numbers: list[int], some_empty: bool = False, **options: Any) -> None:
    with ArrayWriter(path, **options) as writer:
        for number in numbers:
            array = _array(number)[: number % 4] if some_empty else _array(number)
            writer.add(f"im{number:02d}", array, {"labels": [number, 7], "grid": [3, 4]})


@pytest.mark.parametrize(
    "array",
    [
        np.arange(12, dtype=np.uint8).reshape(3, 4),
        np.arange(6, dtype=np.uint16).reshape(1, 2, 3),
        np.array([-5, 2**40], np.int64),
        np.linspace(0, 1, 7, dtype=np.float16),
        np.array([[np.nan, np.inf, -0.0]], np.float32),
        np.array([True, False]),
        np.zeros((0, 5, 6), np.float32),
        np.zeros((0,), np.uint8),
        np.asfortranarray(np.arange(12.0).reshape(3, 4)),
        np.arange(20)[::-3],
    ],
    ids=lambda a: f"{a.dtype}{a.shape}",
)
def test_round_trip(tmp_path: Path, array: NDArray[Any]) -> None:
    attributes = {"labels": [1, 5], "size": [3, 4], "name": "é", "none": None, "scale": 0.1, "map": {"a": [True]}}
    with ArrayWriter(tmp_path / "new" / "s.h5") as writer:
        writer.add("2007_000032", array, attributes)
        writer.add("bare", array)
    with ArrayReader(tmp_path / "new" / "s.h5") as reader:
        found, read = reader.read("2007_000032")
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array)
        assert read == reader.attributes("2007_000032") == attributes
        assert reader.read("bare")[1] == {}


def test_ids_are_sorted_and_missing_ones_named(tmp_path: Path) -> None:
    ids = ["b", "a", "ä b", "10", "9", "a.b"]
    with ArrayWriter(tmp_path / "s.h5", part_images=2) as writer:
        for one in ids:
            writer.add(one, np.zeros(1))
    with ArrayReader(tmp_path / "s.h5") as reader:
        assert reader.ids() == sorted(ids)
        assert len(reader) == 6
        assert "a" in reader
        assert "c" not in reader
        with pytest.raises(SsrError, match=r"s\.h5 has no image c$"):
            reader.read("c")
    assert [one for one, _ in iter_records(tmp_path / "s.h5")] == sorted(ids)


def test_later_images_replace_earlier_ones(tmp_path: Path) -> None:
    path = tmp_path / "s.h5"
    _fill(path, [1, 2])
    with ArrayWriter(path, part_images=1) as writer:
        writer.add("im01", np.ones(2), {"n": 1})
        writer.add("im01", np.full(3, 2.0))  # in the next part
        with ArrayReader(path) as reader:  # parts count before the merge
            assert reader.read("im01")[0].tolist() == [2, 2, 2]
    with ArrayReader(path) as reader:
        assert reader.read("im01")[0].tolist() == [2, 2, 2]
        assert reader.attributes("im01") == {}
        np.testing.assert_array_equal(reader.read("im02")[0], _array(2))


def test_images_are_committed_with_their_part(tmp_path: Path) -> None:
    path = tmp_path / "s.h5"
    with pytest.raises(SsrError, match="no store at"):
        ArrayReader(path)
    writer = ArrayWriter(path, part_images=3)
    for number, expected in [(0, 0), (1, 0), (2, 3), (3, 3), (4, 3), (5, 6), (6, 6)]:
        writer.add(f"im{number}", _array(number))
        assert store_exists(path) == (expected > 0)
        if expected:
            with ArrayReader(path) as reader:
                assert len(reader) == expected
    assert not path.exists()  # parts only
    writer.close()
    assert [p.name for p in tmp_path.iterdir() if not p.name.startswith(".")] == ["s.h5"]  # parts are merged and gone


def test_old_parts_are_committed_though_not_full(tmp_path: Path) -> None:
    with ArrayWriter(tmp_path / "s.h5", part_images=99, part_seconds=-1.0) as writer:
        writer.add("a", np.zeros(1))
        assert store_exists(tmp_path / "s.h5")


def test_an_error_in_the_run_keeps_what_was_added(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), ArrayWriter(tmp_path / "s.h5") as writer:  # noqa: PT012
        writer.add("a", np.zeros(1))
        _ = 1 / 0
    with ArrayReader(tmp_path / "s.h5") as reader:
        assert reader.ids() == ["a"]


def test_clear_starts_over(tmp_path: Path) -> None:
    path = tmp_path / "s.h5"
    _fill(path, [1])
    with ArrayWriter(path, part_images=1) as writer:
        writer.add("part", np.zeros(1))
        writer.clear()
        assert not store_exists(path)
        writer.add("new", np.zeros(1))
    with ArrayReader(path) as reader:
        assert reader.ids() == ["new"]


@pytest.mark.parametrize("seed", range(3))
def test_bytes_do_not_tell_how_often_a_run_was_broken_off(tmp_path: Path, seed: int) -> None:
    numbers = list(range(23))
    _fill(tmp_path / "one.h5", numbers, some_empty=True)
    shuffled = random.Random(seed).sample(numbers, len(numbers))
    for start in range(0, 23, 5):
        _fill(tmp_path / "five.h5", shuffled[start : start + 5], some_empty=True, part_images=1 + (seed + start) % 3)
    assert (tmp_path / "one.h5").read_bytes() == (tmp_path / "five.h5").read_bytes()


def test_parts_left_by_a_broken_run_are_merged_by_the_next(tmp_path: Path) -> None:
    path = tmp_path / "s.h5"
    _fill(path, [3])
    broken = ArrayWriter(path, part_images=2)
    for number in (1, 2, 0):
        broken.add(f"im{number:02d}", _array(number), {"labels": [number, 7], "grid": [3, 4]})
    broken._release()  # what a killed process leaves: parts, no merge, no lock
    with ArrayReader(path) as reader:
        assert reader.ids() == ["im01", "im02", "im03"]
    (tmp_path / ".s.h5.abc.tmp").touch()
    (tmp_path / "s.h5.parts" / ".000009.h5.abc.tmp").touch()
    _fill(path, [0])
    with ArrayReader(path) as reader:
        assert reader.ids() == ["im00", "im01", "im02", "im03"]
        for number in range(4):
            array, attributes = reader.read(f"im{number:02d}")
            np.testing.assert_array_equal(array, _array(number))
            assert attributes == {"labels": [number, 7], "grid": [3, 4]}
    assert not (tmp_path / "s.h5.parts").exists()
    assert not list(tmp_path.glob("*.tmp")) + list(tmp_path.glob(".*.tmp"))


def test_two_writers_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.h5"
    with ArrayWriter(path) as writer:
        with pytest.raises(SsrError, match=r"another process is writing .*s\.h5") as caught:
            ArrayWriter(path)
        assert "\n" not in str(caught.value)
        writer.add("a", np.zeros(1))
        with ArrayWriter(tmp_path / "other.h5"):
            pass
    _fill(path, [1])  # released


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    with pytest.raises(SsrError, match="cannot write"):
        ArrayWriter(tmp_path / "f" / "s.h5")


def _chunk_bytes(path: Path, image_id: str) -> range:
    with h5py.File(path) as file:
        chunk = file[image_id].id.get_chunk_info(0)
        return range(chunk.byte_offset, chunk.byte_offset + chunk.size)


@pytest.mark.parametrize("where", [0, 0.5, -1])
def test_a_flipped_byte_is_found_and_the_others_stay_readable(tmp_path: Path, where: float) -> None:
    path = tmp_path / "s.h5"
    _fill(path, [1, 2, 3])
    place = _chunk_bytes(path, "im02")
    content = bytearray(path.read_bytes())
    content[place[-1] if where < 0 else place[int(where * len(place))]] ^= 0x10
    path.write_bytes(content)
    with ArrayReader(path) as reader:
        with pytest.raises(SsrError, match=r"im02 in .*s\.h5 is damaged"):
            reader.read("im02")
        np.testing.assert_array_equal(reader.read("im03")[0], _array(3))


@pytest.mark.parametrize("keep", [0.0, 0.001, 0.5, 0.99])
def test_truncated_file(tmp_path: Path, keep: float) -> None:
    path = tmp_path / "s.h5"
    _fill(path, [1, 2])
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(SsrError, match=r"s\.h5 is (not a readable HDF5 file|damaged: its checksum does not match)"):
        ArrayReader(path)


@pytest.mark.parametrize("tag", [b"OHDR", b"\x89HDF"])
def test_damaged_metadata(tmp_path: Path, tag: bytes) -> None:
    path = tmp_path / "s.h5"
    _fill(path, [1, 2])
    path.write_bytes(path.read_bytes().replace(tag, b"????", 1))
    with pytest.raises(SsrError), ArrayReader(path) as reader:
        reader.read("im01")
