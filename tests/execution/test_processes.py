"""Jobs in processes of their own: results in order, one that fails or dies costs its job, and the wish to stop is passed on."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from pipelines.errors import SsrError, UsageError
from pipelines.execution import interruption
from pipelines.execution.interruption import Interrupted
from pipelines.execution.processes import run_processes
from pipelines.execution.progress import JoinedProgress, Silent
from tests.fixtures.heard import Heard

WORK = """
import os, signal, time
from pathlib import Path
from pipelines.errors import UsageError
from pipelines.execution.interruption import interrupted, refuse_if_interrupted


def work(job, progress):
    what, folder = job
    progress.start("work", 3)
    progress.note("a remark of all")
    if what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "refuse":
        raise UsageError("no", "--flag")
    if what == "break":
        raise ZeroDivisionError("by zero")
    progress.skip()
    progress.advance(2)
    if what == "wait":
        (Path(folder) / f"ready-{os.getpid()}").touch()
        while not interrupted():
            time.sleep(0.01)
        (Path(folder) / f"finished-{os.getpid()}").touch()
        refuse_if_interrupted()
    if what == "slow":
        time.sleep(1)
        (Path(folder) / "slow came to its end").touch()
    return what, os.getpid(), os.environ["OMP_NUM_THREADS"]
"""
"""A job is what to do, and a folder to leave a mark in. In a file of its own, which fresh processes can import."""


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules/job_of_a_test.py").write_text(WORK)
    monkeypatch.syspath_prepend(tmp_path / "modules")
    monkeypatch.delitem(sys.modules, "job_of_a_test", raising=False)
    return importlib.import_module("job_of_a_test").work


def test_results_and_progress(work: Any) -> None:
    heard, before = Heard(), os.environ.get("OMP_NUM_THREADS")
    found = run_processes(work, [("a", ""), ("b", "")], ["cpu", "cuda:1"], 3, heard)
    assert [(what, threads) for what, _, threads in found] == [("a", "3"), ("b", "3")]
    assert len({os.getpid(), *(pid for _, pid, _ in found)}) == 3
    assert (heard.started, heard.advanced, heard.skipped, heard.finished) == ([("work", 6, 0, "images")], 4, 2, 1)
    assert heard.notes == ["a remark of all"]
    assert os.environ.get("OMP_NUM_THREADS") == before


@pytest.mark.parametrize(
    ("what", "kind", "said"),
    [
        ("die", SsrError, r"the process on cuda:0 died \(SIGKILL\); the others came to the end .*run the same command"),
        ("refuse", UsageError, r"no \(--flag\)"),
        ("break", SsrError, r"unexpected ZeroDivisionError: by zero .*--debug"),
    ],
)
def test_the_others_come_to_their_end(work: Any, tmp_path: Path, what: str, kind: type[SsrError], said: str) -> None:
    with pytest.raises(kind, match=said):
        run_processes(work, [("slow", str(tmp_path)), (what, "")], ["cpu", "cuda:0"], 1, Silent())
    assert (tmp_path / "slow came to its end").exists()


def test_the_wish_to_stop_is_passed_on(work: Any, tmp_path: Path) -> None:
    def ask() -> None:
        while len(list(tmp_path.glob("ready-*"))) < 2:
            time.sleep(0.01)
        interruption.ask_to_stop()

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        with pytest.raises(Interrupted):
            run_processes(work, [("wait", str(tmp_path))] * 2, ["cpu", "cpu"], 1, Silent())
    finally:
        asking.join()
        interruption._asked.clear()
    assert len(list(tmp_path.glob("finished-*"))) == 2


PARENT = """
import sys
from pathlib import Path
from pipelines.execution.processes import run_processes
from pipelines.execution.progress import Silent
import job_of_a_test
if __name__ == "__main__":
    run_processes(job_of_a_test.work, [("wait", sys.argv[1])] * 2, ["cpu", "cpu"], 1, Silent())
"""


def test_children_end_with_a_killed_parent(work: Any, tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path / 'modules'}{os.pathsep}{Path(__file__).parents[2]}"}
    with subprocess.Popen([sys.executable, str(script), str(tmp_path)], env=environment) as parent:
        while len(children := list(tmp_path.glob("ready-*"))) < 2:
            assert parent.poll() is None
            time.sleep(0.02)
        parent.kill()
    pids = [int(path.name.removeprefix("ready-")) for path in children]
    deadline = time.monotonic() + 30
    while any(_alive(pid) for pid in pids):
        assert time.monotonic() < deadline, "orphans are left"
        time.sleep(0.02)


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_a_late_start_is_waited_for() -> None:
    heard = Heard()
    joined = JoinedProgress(heard, 3)
    joined.receive(0, "start", ("work", 5, 0, "images"))
    joined.receive(0, "advance", (2,))
    joined.receive(1, "note", ("said at once",))
    joined.count_in(0)
    joined.count_in(2)  # died before it began
    assert (heard.started, heard.advanced, heard.notes) == ([], 0, ["said at once"])
    joined.receive(1, "start", ("work", 4, 1, "images"))
    assert (heard.started, heard.advanced) == ([("work", 9, 1, "images")], 2)
    joined.finish()
    assert heard.finished == 1


def test_nothing_began() -> None:
    heard = Heard()
    joined = JoinedProgress(heard, 1)
    joined.count_in(0)
    joined.finish()
    assert (heard.started, heard.finished) == ([], 0)
