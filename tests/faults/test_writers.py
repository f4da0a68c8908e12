"""Two writers: a second run of a stage in the same work directory is refused in one line, and the first one is unharmed;
different stages go side by side where the second does not need what the first is making.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.fixtures.forks import Run

from .harness import STAGES, either, sized

PAUSE = 0.05


def locked(work: Path, stage: str) -> list[Path]:
    """Locks of a work directory that this stage made."""
    place = {"align": "align", "train": "train", "predict": "predictions", "retrain": "retrain"}.get(stage, "")
    return list((work / place).glob("*.lock")) + list((work / place).glob(".*.lock"))


def held(lock: Path) -> bool:
    """Whether a process has the lock. Its file is there a moment earlier."""
    return f":{lock.stat().st_ino} " in Path("/proc/locks").read_text()


def under_way(run: Run, work: Path, stage: str, there: set[Path]) -> None:
    """Wait until a run holds its lock."""
    for _ in range(6000):
        if any(map(held, set(locked(work, stage)) - there)):
            return
        time.sleep(0.005)
    raise AssertionError(f"{stage} took no lock: {run.out.read_text()}")


@pytest.mark.skipif(not Path("/proc/locks").exists(), reason="needs /proc")
@pytest.mark.parametrize("stage", either([stage.name for stage in STAGES.values() if stage.lock], "align", "refine"))
def test_second_run_is_refused(lab, table, tmp_path, stage):
    for turn in range(sized(1, 5)):
        work = lab.fresh(stage, tmp_path / f"work{turn}")
        there = set(locked(work, stage))
        first = lab.start(stage, work, pause=PAUSE)
        under_way(first, work, stage, there)
        os.kill(first.pid, signal.SIGSTOP)
        second = lab.run(stage, work)
        forced = lab.run(stage, work, "--force")
        os.kill(first.pid, signal.SIGCONT)
        ended = first.wait()
        assert ended.code == 0, ended
        for refused in (second, forced):
            assert refused.code == 1, f"not refused: {refused}"
            assert refused.clear, refused
            assert STAGES[stage].lock in refused.errors[0]
            assert str(work) in refused.errors[0]
        assert lab.differences(stage, work) == []
        table.add("second writer of the same stage", stage, "one line, exit 1; the first ends in the same bytes", 2)


@pytest.mark.parametrize(
    ("first", "second"), either([("superpixels", "predict"), ("cams", "train"), ("refine", "align")], ("refine", "align"))
)
def test_different_stages_side_by_side(lab, table, tmp_path, first, second):
    """Both start over on what a finished chain has: neither reads what the other makes."""
    work = lab.finished("eval", tmp_path / "work")
    one = lab.start(first, work, "--force", pause=PAUSE)
    two = lab.start(second, work, "--force", pause=PAUSE)
    ended = one.wait(), two.wait()
    assert [run.code for run in ended] == [0, 0], ended
    assert lab.differences("eval", work) == []
    table.add("two different stages at once", f"{first} + {second}", "both end in the same bytes")


def test_two_evaluations_at_once(lab, table, tmp_path):
    """They have no lock: each writes its files whole."""
    for turn in range(sized(1, 5)):
        work = lab.fresh("eval", tmp_path / f"work{turn}")
        runs = [lab.start("eval", work) for _ in range(2)]
        ended = [run.wait() for run in runs]
        assert [run.code for run in ended] == [0, 0], ended
        assert lab.differences("eval", work) == []
        table.add("two runs at once", "eval", "both end in the same bytes")
