"""`ssr train` killed at any moment and run again: model and state are, byte for byte, those of an undisturbed run.

As in test_align_kill.py, one process imports everything and forks a child for each run; a child kills itself at its n-th rename
or removal of a file, or before its n-th step.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

STEPS = 10
SCRIPT = """\
import json, os, signal, sys
import open_clip, torch
from pathlib import Path
open_clip.add_model_config(sys.argv[1])
torch.set_num_threads(1)
from pipelines.stages import train
from pipelines.training.segmentation import SegmentationTrainer
from ssr_cli.app import main
from ssr_cli.commands import train as _  # noqa

import torch._dynamo  # the optimiser would load it in each child
train.curves_figure = lambda *_: None
train.LOG_EVERY = 1


def child(argv, moments, log):
    counts = {"file": 0, "step": 0}

    def at(kind):
        counts[kind] += 1
        if counts[kind] == moments.get(kind):
            os.kill(os.getpid(), signal.SIGKILL)

    def counted(function):
        def call(path, *args, **kwargs):
            os.write(log, f"file {path.name}\\n".encode())
            at("file")
            result = function(path, *args, **kwargs)
            at("file")
            return result
        return call

    def step(trainer, *parts, function=SegmentationTrainer.step):
        os.write(log, f"step {trainer.iteration}\\n".encode())
        at("step")
        return function(trainer, *parts)

    Path.replace = counted(Path.replace)
    SegmentationTrainer.step = step
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
OUTPUTS = ("model.safetensors", "train/state.safetensors", "train/best.safetensors", "train/curves.jsonl")
# Renames of a new training in their order: memory, manifest; at steps 4, 8 and 10 curves, model, state, manifest; at the end
# best, curves, manifest. The n-th moment is before (odd) or after (even) a rename.
RUNS: dict[str, list[tuple[dict[str, int], list[str]]]] = {
    # work directory: (moment of death, flags) of each of its runs
    "calm": [({}, [])],
    "saves": [({"file": moment}, []) for moment in (4, 4, 7, 8, 15, 5, 8, 4, 6)] + [({}, [])],
    "steps": [({"step": step}, []) for step in (1, 6, 3)] + [({}, [])],
    "trained anew": [({}, []), ({"step": 7}, ["--force"]), ({}, [])],
}
KILL_TOML = f"""
[run]
workers = 1
device = "cpu"
[train]
crop = 32
batch = 3
iterations = {STEPS}
save_every = 4
val_split = "val"
warmup = 2
hidden = 8
decoder_layers = 1
decoder_heads = 2
clip_layers = 2
filter_from = 5
affinity_loss = 0.1
par_iterations = 1
par_dilations = [1, 2]
learning_rate = 0.01
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory, make_voc, models, tiny_voc):
    """What the runs of each work directory did, and the folder of the work directories."""
    folder = tmp_path_factory.mktemp("kill")
    photos = {f"photo_{n:02d}": ((48, 32), ("cat", "dog", "bird")[: n % 3]) for n in range(7)}
    make_voc(folder / "VOC2012", photos)
    config = tiny_voc.write_config(folder / "kill.toml", models, KILL_TOML)
    script = folder / "forks.py"
    script.write_text(SCRIPT)
    made = ["--config", str(config), "--root", str(folder / "VOC2012"), "--recipe", "weclip"]
    jobs = [
        {"argv": ["train", *made, "--work", str(folder / work), *flags], "moments": moments, "log": str(folder / "log")}
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


def steps(run) -> list[int]:
    return [int(name) for kind, name in run["log"] if kind == "step"]


@pytest.mark.parametrize("work", RUNS)
def test_runs_were_killed_and_the_last_one_ended(runs, work):
    for run, (moments, _) in zip(runs[1][work], RUNS[work], strict=True):
        assert run["code"] == (-9 if moments else 0), run["said"]


def test_kills_fell_between_the_files_of_a_save(runs):
    last = [run["log"][-1] for run in runs[1]["saves"][:-1]]
    assert all(kind == "file" for kind, _ in last)
    names = [name.split(".")[1] for _, name in last]
    assert names == ["model", "curves", "state", "state", "state", "model", "state", "best", "curves"]


@pytest.mark.parametrize("work", [work for work in RUNS if work != "calm"])
def test_outputs_are_those_of_an_undisturbed_run(runs, work):
    folder, _ = runs
    for name in OUTPUTS:
        assert (folder / work / name).read_bytes() == (folder / "calm" / name).read_bytes(), name


@pytest.mark.parametrize("work", RUNS)
def test_no_litter_is_left(runs, work):
    folder, _ = runs
    assert [path.name for path in (folder / work).rglob("*") if path.name.endswith(".tmp")] == []


@pytest.mark.parametrize("work", [work for work in RUNS if work != "calm"])
def test_manifest_is_that_of_an_undisturbed_run(runs, work):
    folder, _ = runs
    calm, found = (json.loads((folder / name / "model.json").read_text()) for name in ("calm", work))
    assert {**found, "updated": "", "counts": {}} == {**calm, "updated": "", "counts": {}}
    assert found["complete"] is True
    assert found["counts"]["iterations"] == STEPS


def test_no_step_is_taken_twice_but_those_since_the_last_save(runs):
    """Saved at 4, 8 and 10."""
    taken = {work: [steps(run) for run in runs[1][work]] for work in ("saves", "steps")}
    begin, end = [0, 1, 2, 3], [8, 9]
    assert taken["saves"] == [[], begin, begin, begin, list(range(4, 10)), end, end, [], [], []]
    assert taken["steps"] == [[0], [0, 1, 2, 3, 4, 5], [4, 5, 6], list(range(4, 10))]


def test_forced_training_that_was_killed_goes_on(runs):
    _, forced, last = runs[1]["trained anew"]
    assert steps(forced) == list(range(7))
    assert steps(last) == list(range(4, STEPS))
