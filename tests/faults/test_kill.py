"""SIGKILL at random moments of each stage, then resume: the end is, byte for byte, that of an undisturbed run.

The moments are uniform over the time of an undisturbed run. State is carried over: each run goes on where the one before was
killed, until one ends; that is compared, and the next starts from nothing. In between, the directory must be readable.
"""

from __future__ import annotations

import random
import shutil
import time
from collections import Counter

import pytest

from .contents import litter, unreadable
from .harness import KILLED, STAGES, either, sized

KILLS = sized(4, 100)

STAGES_HERE = either(STAGES, "predict")
"""In the short form, tests/stages/test_kill.py kills the others at each kind of rename."""


@pytest.mark.parametrize("stage", STAGES_HERE)
def test_killed_stage_goes_on_and_ends_in_the_same_bytes(lab, table, tmp_path, stage):
    work = lab.fresh(stage, tmp_path / "work")
    began = time.monotonic()
    lab.passes(stage, work)
    seconds = time.monotonic() - began
    assert lab.differences(stage, work) == []
    lab.fresh(stage, work)
    moments = random.Random(f"kill {stage}")
    tally: Counter[str] = Counter()
    faults: list[str] = []
    runs = broken = 0
    while tally["killed"] < KILLS or broken:
        runs += 1
        assert runs < 20 * KILLS + 50, f"hardly any run is hit within {seconds:.2f} s: {tally}"
        run = lab.start(stage, work)
        if tally["killed"] < KILLS:  # else the last one, to the end
            time.sleep(moments.uniform(0, seconds))
            run.kill()
        ended = run.wait(grace=0.5 if STAGES[stage].pool else 0)
        if ended.code == KILLED:
            tally["killed"] += 1
            broken += 1
            tally["orphans"] += ended.orphans
            tally["with orphans"] += ended.orphans > 0
            faults += [f"after kill {tally['killed']}: {line}" for line in unreadable(work)]
            told = lab.command("status", "--work", work).wait()
            if told.code != 0 and (work / "work.json").exists():
                faults.append(f"after kill {tally['killed']}, status: {told}")
            continue
        assert ended.code == 0, f"resumed after {broken} kills: {ended}"
        tally["ended"] += 1
        tally["kills before an end, at most"] = max(broken, tally["kills before an end, at most"])
        faults += [f"end {tally['ended']} differs: {name}" for name in lab.differences(stage, work)]
        tally["temporary files"] += len(litter(work))
        broken = 0
        lab.fresh(stage, work)
    row = ("SIGKILL at a random moment, then resume", stage)
    table.add(*row, "readable, and the bytes of an undisturbed run" if not faults else "faults", tally["killed"])
    table.note(*row, "runs to the end, compared", tally["ended"])
    table.note(*row, "kills that left workers behind", tally["with orphans"])
    table.note(*row, "workers left behind", tally["orphans"])
    table.note(*row, "temporary files left behind at the end", tally["temporary files"])
    assert faults == []


def test_killed_merge(lab, table, tmp_path):
    """`ssr merge` of shards."""
    shards = lab.fresh("cams", tmp_path / "shards")
    for index in range(3):
        lab.passes("cams", shards, "--shard", f"{index}/3")
    work = tmp_path / "work"
    shutil.copytree(shards, work)
    began = time.monotonic()
    assert lab.command("merge", "--work", work).wait().code == 0
    seconds = time.monotonic() - began
    assert lab.differences("cams", work) == []
    moments, killed, faults = random.Random("merge"), 0, []
    while killed < KILLS:
        shutil.rmtree(work)
        shutil.copytree(shards, work)
        run = lab.command("merge", "--work", work)
        time.sleep(moments.uniform(0, seconds))
        run.kill()
        if run.wait().code == KILLED:
            killed += 1
            faults += unreadable(work)
            ended = lab.command("merge", "--work", work).wait()
            faults += [str(ended)] if ended.code else lab.differences("cams", work) + litter(work)
    assert faults == []
    table.add("SIGKILL at a random moment, then resume", "merge", "readable, and the bytes of an undisturbed run", killed)


LEFT = (
    *((stage, f".{stage}.{end}") for stage in ("superpixels", "cams") for end in ("h5", "json")),
    ("align", ".cmpa.json"),
    ("align", "align/.state.safetensors"),
    ("train", ".model.json"),
    ("train", "train/.curves.jsonl"),
    ("refine", "masks/.photo_01.png"),
    ("refine", ".refined.json"),
    ("predict", "predictions/train/.photo_01.png"),
    ("predict", "predictions/.train.json"),
    ("cams", ".work.json"),
    ("eval", "eval/masks/.report.json"),
)


@pytest.mark.parametrize(("stage", "name"), either(LEFT, *LEFT[:2]))
def test_temporary_files_of_a_kill_are_removed(lab, tmp_path, stage, name):
    work = lab.finished(stage, tmp_path / "work")
    left = work / f"{name}.abcdefgh.tmp"
    left.write_text("{")
    lab.passes(stage, work)
    assert not left.exists()
