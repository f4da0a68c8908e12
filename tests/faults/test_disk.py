"""A full disk and one that is read-only: one clear line, exit code 1; with room again, the bytes of an undisturbed run.

The work directory is a small tmpfs: as root, file permissions stop nobody.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fixtures.forks import Ended

from .contents import litter, unreadable
from .harness import FULL, STAGES, either

PAGE = os.sysconf("SC_PAGE_SIZE")


class Disk:
    """A mounted tmpfs."""

    def __init__(self, place: Path) -> None:
        self.place = place
        place.mkdir()
        self._mount("-t", "tmpfs", "-o", "size=64m", "tmpfs", str(place))

    def resize(self, size: int) -> None:
        """Give or take room; what is there stays."""
        self._mount("-o", f"remount,size={size}", str(self.place))

    def writable(self, yes: bool) -> None:
        """Remount."""
        self._mount("-o", f"remount,{'rw' if yes else 'ro'}", str(self.place))

    @property
    def used(self) -> int:
        """Bytes that files take."""
        found = os.statvfs(self.place)
        return (found.f_blocks - found.f_bfree) * found.f_frsize

    @staticmethod
    def _mount(*argv: str) -> None:
        subprocess.run(["mount", *argv], check=True, capture_output=True, text=True)

    def close(self) -> None:
        """Unmount."""
        subprocess.run(["umount", "-l", str(self.place)], check=True)


@pytest.fixture
def disk(tmp_path) -> Iterator[Disk]:
    try:
        found = Disk(tmp_path / "disk")
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"needs the right to mount a tmpfs: {getattr(error, 'stderr', error)}")
    yield found
    found.close()


def rooms(needed: int) -> list[int]:
    """Bytes of room that are too few, from nothing on."""
    shares = [step / 16 for step in range(16)] if FULL else [0.6]
    return sorted({int(needed * share) // PAGE * PAGE for share in shares})


def of_hdf5(ended: Ended) -> bool:
    """libhdf5 has crashed, or its objects could not be closed and said so before the one clear line."""
    return ended.code == -signal.SIGSEGV or (ended.code == 1 and len(ended.errors) == 1 and "h5py" in ended.said)


SPILLS = "told by libhdf5 as well, or a crash of it; then the bytes of an undisturbed run"
ROW = "full disk, then room"


@pytest.mark.parametrize("stage", either(STAGES, "superpixels", "align", "refine", "train"))
def test_full_disk(lab, table, disk, stage):
    work = lab.fresh(stage, disk.place)
    before = disk.used
    lab.passes(stage, work)
    needed = disk.used - before
    faults: list[str] = []
    for room in rooms(needed):
        lab.fresh(stage, work)
        disk.resize(max(PAGE, disk.used + room))  # 0 would be no limit
        ended = lab.run(stage, work)
        disk.resize(64 << 20)
        if ended.code == 0:  # temporary files are what did not fit, or nothing did have to
            table.note(ROW, stage, "fitted")
            faults += [f"{room} bytes: fitted, but {name}" for name in lab.differences(stage, work)]
            continue
        found = [f"unreadable: {line}" for line in unreadable(work)]
        spills = not ended.clear and of_hdf5(ended)  # see the test below
        if not spills and (ended.code != 1 or not ended.clear):
            found.append(str(ended))
        again = lab.run(stage, work)
        found += [f"then {again}"] if again.code else lab.differences(stage, work) + litter(work)
        good = SPILLS if spills else "one line, exit 1, then the bytes of an undisturbed run"
        table.add(ROW, stage, "faults" if found else good)
        faults += [f"{room} of {needed} bytes: {line}" for line in found]
    assert faults == []
    assert (ROW, stage) in table.rows


def test_full_disk_is_told_by_us_alone(lab, disk):
    work = lab.fresh("cams", disk.place)
    for room in range(PAGE, 9 * PAGE, PAGE):
        lab.fresh("cams", work)
        disk.resize(disk.used + room)
        ended = lab.run("cams", work)
        disk.resize(64 << 20)
        assert ended.clear, ended


@pytest.mark.parametrize("stage", either(STAGES, "superpixels", "train"))
def test_read_only_output(lab, table, disk, stage):
    work = lab.fresh(stage, disk.place)
    disk.writable(False)
    ended = lab.run(stage, work)
    disk.writable(True)
    assert ended.code == 1, ended
    assert ended.clear, ended
    assert str(work) in ended.errors[0]
    lab.passes(stage, work)
    assert lab.differences(stage, work) == []
    table.add("read-only output, then writable", stage, "one line, exit 1, then the bytes of an undisturbed run")


@pytest.mark.parametrize("stage", either(STAGES, "predict"))
def test_output_that_becomes_read_only(lab, table, disk, stage):
    """With work half done: another run over what is there."""
    work = lab.fresh(stage, disk.place)
    lab.passes(stage, work)
    disk.writable(False)
    ended = lab.run(stage, work, "--force") if STAGES[stage].changed else lab.run(stage, work)
    disk.writable(True)
    assert ended.code == 1, ended
    assert ended.clear, ended
    lab.passes(stage, work)
    assert lab.differences(stage, work) == []
    table.add("read-only over finished output", stage, "one line, exit 1, nothing lost")
