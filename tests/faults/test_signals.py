"""Ctrl-C at any moment: once, what is under way is finished and committed; twice, the run stops at once. Either goes on."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from itertools import product

import pytest

from .contents import litter, unreadable
from .harness import STAGES, either, sized

LAST = ("stopped: what was computed is kept; run the same command ", "stopped at once: ")
"""How the last line begins; after a second signal either way, because the run may have ended before it."""


@pytest.mark.parametrize(
    ("stage", "times"), either(product(STAGES, (1, 2)), *((name, 1) for name in STAGES), ("align", 2), ("predict", 2))
)
def test_interrupted_stage_goes_on_and_ends_in_the_same_bytes(lab, table, tmp_path, stage, times):
    work = lab.fresh(stage, tmp_path / "work")
    began = time.monotonic()
    lab.start(stage, work, pause=0.02).wait()
    seconds = time.monotonic() - began
    moments, stopped, faults = random.Random(f"{stage} {times}"), 0, []
    for _ in range(40 * sized(1, 10)):
        lab.fresh(stage, work)
        run = lab.start(stage, work, pause=0.02)
        time.sleep(moments.uniform(0, seconds))
        for turn in range(times):
            with contextlib.suppress(ProcessLookupError):
                os.kill(run.pid, signal.SIGINT)
            time.sleep(moments.uniform(0.005, 0.05) if turn + 1 < times else 0)
        ended = run.wait()
        if ended.code == 0 or not ended.said:  # it had come to its end before, or not begun
            continue
        stopped += 1
        if ended.code != 130 or not ended.said.splitlines()[-1].startswith(LAST[:times]):
            faults.append(str(ended))
        faults += unreadable(work)
        lab.passes(stage, work)
        faults += lab.differences(stage, work) + litter(work)
        outcome = f"exit {ended.code}, then the bytes of an undisturbed run"
        table.add(f"Ctrl-C {'once' if times == 1 else 'twice'}", stage, outcome)
        if stopped == sized(1, 10):
            break
    assert stopped == sized(1, 10)
    assert faults == []
