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

from .contents import differing, digest
from .harness import ROOT, sized

STAGES = ("superpixels", "cams", "refine")
PHOTOS = 10
KILLS = sized(1, 12)
SSR = [sys.executable, "-c", "from ssr_cli.app import main; main()"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--no-python"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
DIED = r"error: the process on cpu \([12] of 2\) died \(SIGKILL\); the others came to the end of their shares"
# by launcher: what precedes `ssr`, flags, what the command line of a worker holds, and what is said of its death
LAUNCHERS = {
    "--devices": (SSR, ("--devices", "cpu,cpu"), b"spawn_main", DIED),
    "torchrun": ([*TORCHRUN, str(Path(sys.executable).parent / "ssr")], (), b"bin/ssr", "SIGKILL|Signal 9"),
    "Ray": (SSR, ("--engine", "ray", "--actors", "2", "--actor-cpus", "0.5"), b"ray::_Actor.run", None),
}


def launched(*words: object, launcher: str | None = None, ssr: Path | None = None) -> subprocess.Popen[str]:
    command, flags, *_ = LAUNCHERS[launcher] if launcher else ([str(ssr)], ())
    arguments = [*command, *map(str, words), *flags]
    return subprocess.Popen(arguments, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def passes(*words: object, launcher: str | None = None, ssr: Path | None = None) -> None:
    process = launched(*words, launcher=launcher, ssr=ssr)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, warm_ssr):
    """Work directories of one process over a drawn set after each stage; after ``""`` nothing is there yet."""
    folder = tmp_path_factory.mktemp("launchers")
    passes("sample", "--work", folder / "sample", "--train", PHOTOS, "--val", 1, ssr=warm_ssr)
    now, after = folder / "work", {"": folder / "empty"}
    now.mkdir()
    after[""].mkdir()
    for stage in STAGES:
        passes(stage, "--config", folder / "sample/sample.toml", "--work", now, ssr=warm_ssr)
        after[stage] = Path(shutil.copytree(now, folder / stage))
    return after


def workers_of(process: subprocess.Popen[str], words: bytes) -> list[int]:
    """Its descendants whose command line holds some words, once there are any; empty if it ends without."""
    while process.poll() is None:
        parents = {}
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
                parents[int(path.name)] = (parent, (path / "cmdline").read_bytes())
        found = []
        for pid, (parent, line) in parents.items():
            while parent in parents and parent != process.pid:
                parent = parents[parent][0]
            if parent == process.pid and words in line:
                found.append(pid)
        if found:
            return found
        time.sleep(0.02)
    return []


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_killed_process(undisturbed, warm_ssr, table, tmp_path, launcher):
    if launcher == "Ray" and importlib.util.find_spec("ray") is None:
        pytest.skip("needs ray: pip install 'ssr-wsss[ray]'")
    _, _, words, death = LAUNCHERS[launcher]
    moments, killed = random.Random(launcher), 0
    config = undisturbed[""].parent / "sample/sample.toml"
    for turn in range(10 * KILLS):
        stage = STAGES[(turn + 1) % 3]
        before = undisturbed[("", *STAGES)[STAGES.index(stage)]]
        work = Path(shutil.copytree(before, tmp_path / f"work{turn}"))
        process = launched(stage, "--config", config, "--work", work, launcher=launcher)
        workers_of(process, words)
        time.sleep(moments.uniform(0, 6) if turn else 0)
        workers = workers_of(process, words)
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
            passes(stage, "--work", work, launcher=launcher)
        passes("merge", "--work", work, ssr=warm_ssr)
        assert differing(digest(undisturbed[stage]), digest(work)) == []
        if workers:
            outcome = f"exit {process.returncode}, and the bytes of an undisturbed run at the end"
            table.add(f"a process killed under {launcher}", stage, outcome)
        if killed == KILLS:
            break
    assert killed == KILLS
