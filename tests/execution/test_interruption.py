"""The first signal lets a run finish what is under way; the second one ends the process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

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
        "    os.kill(os.getpid(), signal.SIGTERM)\n    print('never')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60, cwd=Path(__file__).parents[2]
    )
    assert done.returncode == 130
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == ["SIGINT", "goes on", "stopped at once"]


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
