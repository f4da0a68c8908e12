"""A process of `--devices`, of torchrun or of Ray is killed: it costs its own share at most, and the end is the same bytes."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.fixtures.forks import Warm

from .contents import differing, digest
from .harness import ROOT, either, sized

STAGES = ("superpixels", "cams", "refine")
PHOTOS = 6
KILLS = sized(1, 12)
SSR = [sys.executable, "-c", "from ssr_cli.app import main; main()"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
DIED = r"error: the process on cpu \([12] of 2\) died \(SIGKILL\); the others came to the end of their shares"
# by launcher: flags, and what is said of a worker's death
LAUNCHERS = {
    "--devices": (("--devices", "cpu,cpu"), DIED),
    "torchrun": ((), "SIGKILL|Signal 9"),
    "Ray": (("--engine", "ray", "--actors", "2", "--actor-cpus", "0.5"), None),
}


def command_of(launcher: str, warm: Warm) -> list[str]:
    """What precedes the words of ``ssr``; under Ray a fresh process, elsewhere forks of a warm one."""
    if launcher == "torchrun":
        return [str(warm.torchrun), "--standalone", "--nproc-per-node=2", "--no-python", str(warm.ssr)]
    return SSR if launcher == "Ray" else [str(warm.ssr)]


def started(command: list[str], *words: object, pids: Path | None = None) -> subprocess.Popen[str]:
    """A command that has started; its forks write their process ids to a file."""
    environment = ENVIRONMENT | ({"SSR_TESTS_PIDS": str(pids)} if pids else {})
    arguments = [*command, *map(str, words)]
    return subprocess.Popen(arguments, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def passes(command: list[str], *words: object) -> None:
    process = started(command, *words)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, warm, models):
    """Work directories of one process over a drawn set after each stage; after ``""`` nothing is there yet."""
    folder = tmp_path_factory.mktemp("launchers")
    ssr = [str(warm.ssr)]
    passes(ssr, "sample", "--work", folder / "sample", "--train", PHOTOS, "--val", 1)
    models.put_into(folder / "sample/sample.toml")
    now, after = folder / "work", {"": folder / "empty"}
    now.mkdir()
    after[""].mkdir()
    for stage in STAGES:
        passes(ssr, stage, "--config", folder / "sample/sample.toml", "--work", now)
        after[stage] = Path(shutil.copytree(now, folder / stage))
    return after


def workers_of(launcher: str, process: subprocess.Popen[str], pids: Path) -> list[int]:
    """The processes that share the work, once there are any; empty if the run ends without."""
    while process.poll() is None:
        found = [int(line) for line in pids.read_text().split()] if pids.exists() else []  # that of the launcher first
        if launcher == "Ray":
            found = [pid for pid in descendants(process.pid) if b"ray::_Actor.run" in command_line(pid)]
        elif launcher == "torchrun":
            found = found[1:]
        else:
            found = [pid for pid in descendants(*found[:1]) if b"resource_tracker" not in command_line(pid)]
        if found:
            return found
        time.sleep(0.005)
    return []


def descendants(*above: int) -> list[int]:
    """Processes below some."""
    below = []
    for pid in above:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{pid}/task").iterdir():
                below += map(int, (task / "children").read_text().split())
    return below + (descendants(*below) if below else [])


def command_line(pid: int) -> bytes:
    """Of a process; empty if it has just ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize("launcher", either(LAUNCHERS, "--devices", "Ray"))
def test_killed_process(undisturbed, warm, table, tmp_path, launcher):
    if launcher == "Ray" and importlib.util.find_spec("ray") is None:
        pytest.skip("needs ray: pip install 'ssr-wsss[ray]'")
    flags, death = LAUNCHERS[launcher]
    command, pids = command_of(launcher, warm), tmp_path / "pids"
    moments, killed = random.Random(launcher), 0
    config = undisturbed[""].parent / "sample/sample.toml"
    for turn in range(10 * KILLS):
        stage = STAGES[(turn + 1) % 3]
        before, after = undisturbed[("", *STAGES)[STAGES.index(stage)]], undisturbed[stage]
        if launcher == "Ray" and turn == 0:  # all three in one pass
            stage, before, after = "masks", undisturbed[""], undisturbed[STAGES[-1]]
        work = Path(shutil.copytree(before, tmp_path / f"work{turn}"))
        pids.unlink(missing_ok=True)
        process = started(command, stage, "--config", config, "--work", work, *flags, pids=pids)
        workers_of(launcher, process, pids)
        time.sleep(moments.uniform(0, 6 if launcher == "Ray" else 1) if turn else 0)
        workers = workers_of(launcher, process, pids)
        if workers:  # else it came to its end before
            with contextlib.suppress(ProcessLookupError):
                os.kill(moments.choice(workers), signal.SIGKILL)
        _, said = process.communicate(timeout=300)
        if death is None:
            assert process.returncode == 0, said
            killed += bool(workers)
        elif process.returncode:
            killed += 1
            assert re.search(death, said), said
            passes(command, stage, "--work", work, *flags)
        passes([str(warm.ssr)], "merge", "--work", work)
        assert differing(digest(after), digest(work)) == []
        if workers:
            outcome = f"exit {process.returncode}, and the bytes of an undisturbed run at the end"
            table.add(f"a process killed under {launcher}", stage, outcome)
        if killed == KILLS:
            break
    assert killed == KILLS
