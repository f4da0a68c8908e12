"""`ssr align` killed at any moment and run again: the heads are, byte for byte, those of an undisturbed run.

As in test_kill.py, one process imports everything and forks a child for each run; a child kills itself at its n-th rename or
removal of a file, or before its n-th training step.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

IMAGES, STEPS = 12, 20
SCRIPT = """\
import json, os, signal, sys
import open_clip, torch
from pathlib import Path
open_clip.add_model_config(sys.argv[1])
torch.set_num_threads(1)
from pipelines.stages import align
from pipelines.stores.array_store import ArrayWriter
from pipelines.training.alignment import AlignmentTrainer
from ssr_cli.app import main
from ssr_cli.commands import align as _  # noqa

ArrayWriter.__init__.__defaults__ = (3, 20.0)  # parts of three photos
align.SAVE_EVERY = 4


def child(argv, moments, log):
    counts = {"file": 0, "step": 0}

    def at(kind):
        counts[kind] += 1
        if counts[kind] == moments.get(kind):
            os.kill(os.getpid(), signal.SIGKILL)

    def counted(function):
        def call(*args, **kwargs):
            at("file")
            result = function(*args, **kwargs)
            at("file")
            return result
        return call

    def step(trainer, photos, function=AlignmentTrainer._step):
        os.write(log, f"step {trainer.iteration}\\n".encode())
        at("step")
        return function(trainer, photos)

    def add(writer, image_id, *rest, function=ArrayWriter.add):
        os.write(log, f"{writer.path.stem} {image_id}\\n".encode())
        return function(writer, image_id, *rest)

    Path.replace, Path.unlink = counted(Path.replace), counted(Path.unlink)
    AlignmentTrainer._step, ArrayWriter.add = step, add
    sys.argv = ["ssr", *argv]
    try:
        main()
    except SystemExit as stop:
        sys.stdout.flush()
        os._exit(stop.code or 0)


for run in json.loads(sys.stdin.read()):
    log_path = Path(run["log"])
    log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    pid = os.fork()
    if pid == 0:
        out = os.open(str(log_path) + ".out", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        child(run["argv"], run["moments"], log)
        os._exit(99)
    status = os.waitpid(pid, 0)[1]
    print(json.dumps({
        "code": os.waitstatus_to_exitcode(status), "log": [line.split() for line in log_path.read_text().splitlines()],
        "said": Path(str(log_path) + ".out").read_text()[-800:],
    }), flush=True)
"""
NEVER = ["--resume", "never"]
RUNS: dict[str, list[tuple[dict[str, int], list[str]]]] = {
    # work directory: (moment of death, flags) of each of its runs
    "calm": [({}, [])],
    "collecting": [({"file": moment}, []) for moment in (9, 14, 27, 11)] + [({}, [])],
    "saving": [({"step": 1}, []), *(({"file": moment}, []) for moment in (17, 23, 18)), ({}, [])],
    "steps": [({"step": step}, []) for step in (1, 6, 5)] + [({}, [])],
    "never": [({"step": 11}, []), ({"step": 14}, NEVER), ({}, NEVER)],
    "trained anew": [({}, []), ({"step": 11}, ["--force"]), ({}, [])],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, make_voc, models, tiny_voc):
    """What the runs of each work directory did, and the folder of the work directories."""
    folder = tmp_path_factory.mktemp("kill")
    photos = {
        f"photo_{n:02d}": ((48, 32) if n % 3 else (32, 48), ("cat", "dog", "bird")[: 1 + n % 3] if n % 5 else ("car",))
        for n in range(IMAGES)
    }
    make_voc(folder / "VOC2012", photos, masks=False)
    config = tiny_voc.write_config(folder / "kill.toml", models, KILL_TOML.format(steps=STEPS))
    script = folder / "forks.py"
    script.write_text(SCRIPT)
    jobs = [
        {
            "argv": ["align", "--config", str(config), "--root", str(folder / "VOC2012"), "--work", str(folder / work), *flags],
            "moments": moments,
            "log": str(folder / "log"),
        }
        for work, of in RUNS.items()
        for moments, flags in of
    ]
    done = subprocess.run(
        [sys.executable, str(script), str(models.clip_config)],
        input=json.dumps(jobs), capture_output=True, text=True, check=True, timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    told = iter([json.loads(line) for line in done.stdout.splitlines()])
    return folder, {work: [next(told) for _ in of] for work, of in RUNS.items()}


KILL_TOML = """
[run]
workers = 1
device = "cpu"
[cams]
readout = "gradcam"
[align]
cam = "initial"
hidden = 8
tokens = 6
batch = 5
iterations = {steps}
refresh = 7
learning_rate = 0.001
"""


def steps(run) -> list[int]:
    return [int(name) for kind, name in run["log"] if kind == "step"]


def photos(run) -> list[str]:
    return [name for kind, name in run["log"] if kind == "cams"]


@pytest.mark.parametrize("work", RUNS)
def test_runs_were_killed_and_the_last_one_ended(runs, work):
    for run, (moments, _) in zip(runs[1][work], RUNS[work], strict=True):
        assert run["code"] == (-9 if moments else 0), run["said"]


def test_kills_fell_into_collecting_and_into_saving(runs):
    of = runs[1]["collecting"]
    assert any(photos(run) and not steps(run) for run in of)
    assert any(0 < len(photos(run)) < IMAGES for run in of)
    assert any(steps(run) for run in runs[1]["saving"][1:-1])


@pytest.mark.parametrize("work", [work for work in RUNS if work != "calm"])
def test_heads_are_those_of_an_undisturbed_run(runs, work):
    folder, _ = runs
    for name in ("cmpa.safetensors", "align/tokens.h5", "align/cams.h5"):
        assert (folder / work / name).read_bytes() == (folder / "calm" / name).read_bytes(), name


def test_no_litter_is_left(runs):
    folder, _ = runs
    assert [path.name for path in folder.rglob("*") if path.name.endswith((".tmp", ".parts"))] == []


@pytest.mark.parametrize("work", [work for work in RUNS if work != "calm"])
def test_manifest_is_that_of_an_undisturbed_run(runs, work):
    folder, _ = runs
    calm, found = (json.loads((folder / name / "cmpa.json").read_text()) for name in ("calm", work))
    assert {**found, "updated": ""} == {**calm, "updated": ""}
    assert found["complete"] is True


@pytest.mark.parametrize("work", [work for work in RUNS if work != "calm"])
def test_metrics_are_those_of_an_undisturbed_run(runs, work):
    """But for the loss, whose mean begins anew where a run does."""
    folder, _ = runs
    calm, found = (json.loads((folder / name / "align/metrics.json").read_text()) for name in ("calm", work))
    assert [m["iteration"] for m in found] == [0, 7, 14, 20]
    for a, b in zip(calm, found, strict=True):
        assert {**a, "loss": 0} == {**b, "loss": 0}


def test_no_step_is_taken_twice_but_those_since_the_last_save(runs):
    end = 0
    for run in runs[1]["steps"]:
        taken = steps(run)
        first = taken[0]
        assert taken == list(range(first, first + len(taken)))
        assert end - 4 <= first <= end, "saved every 4 steps and at refreshes"
        end = taken[-1] + (run["code"] == 0)
    assert end == STEPS
    assert all(photos(run) == [] for run in runs[1]["steps"][1:]), "patches are kept"


def test_resume_never_starts_over_on_the_patches_kept(runs):
    first, second, third = runs[1]["never"]
    assert steps(first)[0] == 0
    assert len(photos(first)) == IMAGES
    assert steps(second) == list(range(14))
    assert steps(third) == list(range(STEPS))
    assert photos(second) == photos(third) == []


def test_forced_training_that_was_killed_goes_on(runs):
    _, forced, last = runs[1]["trained anew"]
    assert steps(forced) == list(range(11))
    assert photos(forced) == []
    assert 0 < steps(last)[0] <= 10
