"""A worker of a process pool is killed: one clear line, exit code 1, and a run that goes on ends in the same bytes; and the
workers of a killed run end, too.
"""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

from tests.fixtures.forks import Run, session_of

from .harness import STAGES, either, sized

POOLS = [stage.name for stage in STAGES.values() if stage.pool and "none" not in stage.argv]


def workers_of(run: Run, seconds: float = 60.0) -> list[int]:
    """Worker processes, once there are any; empty if the run ends without."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = [pid for pid in session_of(run.pid) if _parent(pid) not in {0, run.pid}]  # children of the fork server
        if found or not _alive(run.pid):
            return found
        time.sleep(0.002)
    return []


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0  # it has just ended


def _alive(pid: int) -> bool:
    return (Path(f"/proc/{pid}/stat")).read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize("stage", either(POOLS, "superpixels", "predict"))
def test_worker_killed(lab, table, tmp_path, stage):
    """The first is killed while work is still handed out, the others at any moment."""
    moments, faults = random.Random(f"worker {stage}"), []
    hit = 0
    for turn in range(40 * sized(2, 20)):
        work = lab.fresh(stage, tmp_path / f"work{turn}")
        run = lab.start(stage, work, pause=0.02)
        workers = workers_of(run)
        assert workers, run.wait()
        time.sleep(moments.uniform(0, 0.3) if turn else 0)  # 20 images take 0.4 s
        for pid in session_of(run.pid):
            if pid in workers:
                os.kill(pid, signal.SIGKILL)
        ended = run.wait()
        if ended.code != 0:  # else all work had been done
            hit += 1
            told = ended.code == 1 and ended.clear and "process died" in ended.errors[0]
            faults += [] if told else [str(ended)]
            lab.passes(stage, work)
            how = "one line" if told else "an unexpected error"
            table.add("a worker process killed", stage, f"{how}, exit {ended.code}, then the bytes of an undisturbed run")
        assert lab.differences(stage, work) == []
        if hit == sized(2, 20):
            break
    assert hit == sized(2, 20)
    assert faults == []


@pytest.mark.parametrize("stage", either(POOLS, "superpixels"))
def test_workers_end_with_a_killed_run(lab, table, tmp_path, stage):
    """Those of a fork server as the program starts it."""
    work = lab.fresh(stage, tmp_path / "work")
    run = lab.start(stage, work, pause=0.02, fresh=True)
    assert workers_of(run), run.wait()
    time.sleep(0.3)  # a worker that starts notices by itself: its parent's pipe ends
    run.kill()
    left = run.wait(grace=3.0).orphans
    table.add("workers of a killed run", stage, "gone within 3 s" if not left else "stay behind")
    assert left == 0
