"""The first signal lets a run finish what is under way; the second one ends the process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pipelines.execution import interruption
from pipelines.execution.interruption import (
    Interrupted,
    finishing_on_signals,
    interrupted,
    refuse_if_interrupted,
    until_interrupted,
)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_signal(number: signal.Signals) -> None:
    said: list[str] = []
    before = signal.getsignal(number)
    with finishing_on_signals(said.append):
        taken = []
        for item in until_interrupted(range(100)):
            taken.append(item)
            if item == 3:
                os.kill(os.getpid(), number)
        assert taken == [0, 1, 2, 3]
        assert interrupted()
        assert said == [f"{number.name}: finishing what is under way; once more stops at once"]
        with pytest.raises(Interrupted, match="what was computed is kept") as caught:
            refuse_if_interrupted()
        assert caught.value.exit_code == 130
    assert not interrupted()
    refuse_if_interrupted()
    assert signal.getsignal(number) == before


def test_second_signal_ends_the_process() -> None:
    code = (
        "import os, signal\nfrom pipelines.execution.interruption import finishing_on_signals\n"
        "with finishing_on_signals(lambda line: print(line, flush=True)):\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n    print('goes on', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n    print('relayed', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n    print('never')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60, cwd=Path(__file__).parents[2]
    )
    assert done.returncode == 130
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == ["SIGINT", "goes on", "relayed", "stopped at once"]


def test_another_signal_much_later_is_a_second_wish(monkeypatch: pytest.MonkeyPatch) -> None:
    now, ends = [100.0], []
    monkeypatch.setattr(interruption.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(interruption.os, "_exit", ends.append)
    with finishing_on_signals(lambda line: None):
        os.kill(os.getpid(), signal.SIGTERM)
        now[0] += 1.9
        os.kill(os.getpid(), signal.SIGINT)
        assert ends == []
        now[0] += 0.2
        os.kill(os.getpid(), signal.SIGINT)
        assert ends == [130]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_forked_processes_are_silent_and_can_be_ended(number: signal.Signals, code: int) -> None:
    said: list[str] = []
    with finishing_on_signals(said.append):
        child = os.fork()
        if not child:
            os.kill(os.getpid(), number)
            os._exit(len(said) + interrupted())
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == code
    assert said == []


def test_other_threads_leave_signals_alone() -> None:
    before = signal.getsignal(signal.SIGINT)
    seen: list[object] = []

    def run() -> None:
        with finishing_on_signals(print):
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [before]
