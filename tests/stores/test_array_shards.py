"""Shards of a store: written apart, read together, merged into the bytes that one writer makes; and many parts."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipelines.errors import SsrError, UsageError
from pipelines.stores import array_store
from pipelines.stores.array_reader import parts_of
from pipelines.stores.array_store import ArrayReader, ArrayWriter, store_exists
from pipelines.stores.shard import Shard

IDS = [f"im{number:03d}" for number in range(60)]


def add(writer: ArrayWriter, ids: list[str], value: int = 0) -> None:
    for one in ids:
        writer.add(one, np.full((2, 3), value + int(one[2:]), np.int32), {"labels": [value]})


def write_shards(path: Path, count: int, ids: list[str] = IDS, value: int = 0) -> None:
    for shard in (Shard(index, count) for index in range(count)):
        with ArrayWriter(path, part_images=4, shard=shard) as writer:
            add(writer, [one for one in ids if shard.holds(one)], value)


@pytest.fixture
def whole(tmp_path: Path) -> bytes:
    with ArrayWriter(tmp_path / "whole/s.h5") as writer:
        add(writer, IDS)
    return (tmp_path / "whole/s.h5").read_bytes()


@pytest.mark.parametrize(("count", "reopen"), [(2, 2048), (5, 2048), (5, 1), (2, 7)])
def test_read_together_and_merged_to_the_same_bytes(
    tmp_path: Path, whole: bytes, monkeypatch: pytest.MonkeyPatch, count: int, reopen: int
) -> None:
    monkeypatch.setattr(array_store, "REOPEN", reopen)
    path = tmp_path / "s.h5"
    write_shards(path, count)
    assert store_exists(path)
    assert not path.exists()
    with ArrayReader(path) as reader:
        assert reader.ids() == IDS
        assert len(reader) == 60
        assert all(reader.read(one)[0][0, 0] == int(one[2:]) for one in IDS)
        assert "im999" not in reader
    with ArrayWriter(path):
        pass
    assert path.read_bytes() == whole
    assert not (tmp_path / "shards").exists()


def test_a_shard_reads_its_own(tmp_path: Path) -> None:
    write_shards(tmp_path / "s.h5", 3)
    with ArrayReader(tmp_path / "s.h5", Shard(1, 3)) as reader:
        assert reader.ids() == [one for one in IDS if Shard(1, 3).holds(one)]
    with pytest.raises(SsrError, match="no store at"):
        ArrayReader(tmp_path / "t.h5", Shard(1, 3))


def test_a_worker_opens_no_other_shard(tmp_path: Path) -> None:
    """Its siblings may be writing, or their files damaged."""
    write_shards(tmp_path / "s.h5", 2)
    (tmp_path / "shards/1-of-2/s.h5").write_bytes(b"damaged")
    mine = [one for one in IDS if Shard(0, 2).holds(one)]
    with ArrayReader(tmp_path / "s.h5") as reader:
        assert all(one in reader for one in mine)
        with pytest.raises(SsrError, match=r"1-of-2/s\.h5 is not a readable HDF5 file"):
            _ = next(one for one in IDS if one not in mine) in reader


def test_shards_are_newer_than_the_main_file(tmp_path: Path, whole: bytes) -> None:
    path = tmp_path / "s.h5"
    with ArrayWriter(path) as writer:
        add(writer, IDS, 1000)
    write_shards(path, 2, IDS[:30])
    with ArrayReader(path) as reader:
        assert [int(reader.read(one)[0][0, 0]) // 1000 for one in IDS] == [0] * 30 + [1] * 30
    with ArrayWriter(path) as writer:
        add(writer, IDS[30:])
    assert path.read_bytes() == whole


def test_another_number_of_shards_is_refused_until_they_are_merged(tmp_path: Path, whole: bytes) -> None:
    path = tmp_path / "s.h5"
    write_shards(path, 2, IDS[:20])
    with pytest.raises(UsageError, match=r"has shards of 2, not of 3 \(`ssr merge"):
        ArrayWriter(path, shard=Shard(0, 3))
    with ArrayWriter(path):
        pass
    write_shards(path, 3, IDS[20:])
    with ArrayWriter(path):
        pass
    assert path.read_bytes() == whole


def test_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s.h5"
    monkeypatch.setattr(array_store, "PATIENCE", 0.1)
    with ArrayWriter(path, shard=Shard(0, 2)) as writer, ArrayWriter(path, shard=Shard(1, 2)):
        with pytest.raises(SsrError, match=r"another process is writing .*0-of-2/s\.h5"):
            ArrayWriter(path, shard=Shard(0, 2))
        with pytest.raises(SsrError, match=r"another process is writing .*-of-2/s\.h5"):
            ArrayWriter(path)
        add(writer, [one for one in IDS if Shard(0, 2).holds(one)])
    with ArrayWriter(path), pytest.raises(SsrError, match=r"another process is writing .*s\.h5"):
        ArrayWriter(path, shard=Shard(0, 2))
    with ArrayWriter(path, shard=Shard(0, 2)):
        pass


def test_clear(tmp_path: Path) -> None:
    path = tmp_path / "s.h5"
    with ArrayWriter(path) as writer:
        add(writer, IDS[:3])
    write_shards(path, 2)
    with ArrayWriter(path, shard=Shard(0, 2)) as writer:
        writer.clear()
    with ArrayReader(path) as reader:  # the others' images stay
        assert set(reader.ids()) == {one for one in IDS if Shard(1, 2).holds(one)} | set(IDS[:3])
    with ArrayWriter(path) as writer:
        writer.clear()
    assert not store_exists(path)


@pytest.mark.slow
def test_many_parts_become_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long a run is broken off, few files are left; and what came last counts."""
    monkeypatch.setattr(array_store, "UNITE", 8)
    draw, expected = random.Random(0), {}
    path = tmp_path / "s.h5"
    writer = ArrayWriter(path, part_images=1)
    most = 0
    for turn in range(150):
        one = f"im{draw.randrange(50):03d}"
        expected[one] = turn
        writer.add(one, np.full(1, turn, np.int32))
        most = max(most, len(parts_of(path)))
    assert most <= 3 * array_store.UNITE
    assert len(parts_of(path)) <= 3 * array_store.UNITE
    with ArrayReader(path) as reader:
        assert {one: int(reader.read(one)[0][0]) for one in reader.ids()} == expected
    writer.close()
    with ArrayReader(path) as reader:
        assert {one: int(reader.read(one)[0][0]) for one in reader.ids()} == expected
    assert not parts_of(path)


def test_a_kill_while_parts_are_united(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s.h5"
    unlink, removed = Path.unlink, 0

    def killed(self: Path, missing_ok: bool = False) -> None:
        nonlocal removed
        if self.parent.name == "s.h5.parts" and self.suffix == ".h5":
            removed += 1
            if removed == 5:
                raise KeyboardInterrupt
        unlink(self, missing_ok)

    monkeypatch.setattr(Path, "unlink", killed)
    writer = ArrayWriter(path, part_images=1)
    with pytest.raises(KeyboardInterrupt):
        add(writer, IDS)
    monkeypatch.undo()
    writer._release()
    with ArrayReader(path) as reader:
        assert reader.ids() == IDS[: array_store.UNITE]
    assert len(parts_of(path)) == 1 + array_store.UNITE - 4
    again = ArrayWriter(path, part_images=1)
    assert len(parts_of(path)) == 1  # what is in the one that unites them is gone
    add(again, IDS[array_store.UNITE :])
    again.close()
    with ArrayReader(path) as reader:
        assert reader.ids() == IDS


def test_a_kill_before_parts_are_united_loses_none_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next run has one part more to unite; the run after it must not take the oldest for one that was united."""
    path = tmp_path / "s.h5"
    for unite, ids in ((None, IDS[: array_store.UNITE]), (ArrayWriter._unite, IDS[array_store.UNITE :][:1]), (None, [])):
        monkeypatch.setattr(ArrayWriter, "_unite", unite or (lambda writer: None))
        writer = ArrayWriter(path, part_images=1)
        add(writer, ids)
        writer._release()  # killed
    with ArrayReader(path) as reader:
        assert reader.ids() == IDS[: array_store.UNITE + 1]


MERGE = """
import sys
from pathlib import Path
import numpy as np
from pipelines.stores import array_store
from pipelines.stores.array_store import ArrayWriter
from pipelines.stores.shard import Shard

def held():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1])

path, images, array_store.REOPEN = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
for shard in (Shard(index, 8) for index in range(8)):
    with ArrayWriter(path, shard=shard) as writer:
        for image_id in (f"{number:06d}" for number in range(images)):
            if shard.holds(image_id):
                writer.add(image_id, np.zeros(4, np.uint8))
before = held()
ArrayWriter(path).close()
print(held() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_opening_the_sources_anew_bounds_the_memory_of_a_merge(tmp_path: Path) -> None:
    """HDF5 keeps tables of each image that it has read until the file is closed."""
    grown = []
    for reopen in (100, 10**9):
        command = [sys.executable, "-c", MERGE, str(tmp_path / f"{reopen}/s.h5"), "2000", str(reopen)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
        grown.append(int(done.stdout))
    assert grown[0] < 0.8 * grown[1]  # KiB
