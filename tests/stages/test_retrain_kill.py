"""`ssr retrain` killed at any moment and run again: network and curves are, byte for byte, those of an undisturbed run.

As in test_train_kill.py, one process imports everything and forks a child for each run; a child kills itself at its n-th rename
of a file, or after its n-th step.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mmengine")
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

STEPS = 8
SCRIPT = """\
import json, os, signal, sys
import torch
from pathlib import Path
torch.set_num_threads(1)
from pipelines.mmsegmentation.imports import import_mmsegmentation
import_mmsegmentation()
from pipelines.mmsegmentation import hook, training
from pipelines.stages import retrain
from ssr_cli.app import main
from ssr_cli.commands import retrain as _  # noqa

import torch._dynamo  # the optimiser would load it in each child
retrain.curves_figure = lambda *_: None
hook.LOG_EVERY = 1


def child(argv, moments):
    counts = {"file": 0, "step": 0}

    def at(kind):
        counts[kind] += 1
        if counts[kind] == moments.get(kind):
            os.kill(os.getpid(), signal.SIGKILL)

    def rename(path, *args, function=Path.replace):
        at("file")
        result = function(path, *args)
        at("file")
        return result

    def stepped(self, *args, function=retrain._Retraining.stepped):
        function(self, *args)
        at("step")

    Path.replace = rename
    retrain._Retraining.stepped = stepped
    sys.argv = ["ssr", *argv]
    try:
        main()
    except SystemExit as stop:
        os._exit(stop.code or 0)


for run in json.loads(sys.stdin.read()):
    pid = os.fork()
    if pid == 0:
        out = os.open(run["out"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        child(run["argv"], run["moments"])
        os._exit(99)
    status = os.waitpid(pid, 0)[1]
    said = Path(run["out"]).read_text()[-800:]
    print(json.dumps({"code": os.waitstatus_to_exitcode(status), "said": said}), flush=True)
"""
OUTPUTS = ("retrained.safetensors", "retrain/best.safetensors", "retrain/curves.jsonl")
RUNS: dict[str, list[dict[str, int]]] = {
    # work directory: moment of death of each of its runs. Renames: memory, manifest, list, val's list, config; at a save
    # curves, network, state, manifest; the n-th moment is before (odd) or after (even) one
    "calm": [{}],
    "before the first step": [{"file": 6}, {"file": 9}, {}],
    "saves": [{"file": moment} for moment in (12, 14, 15, 16, 12)] + [{}],
    "steps": [{"step": step} for step in (1, 5, 2)] + [{}],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, finished, tiny_voc):
    folder = tmp_path_factory.mktemp("kill")
    small = (
        "--model", "segformer", "--backbone", "dino", "--schedule", STEPS, "--batch", 2, "--crop", 64, "--channels", 16,
        "--warmup", 2, "--save-every", 3, "--val-split", "val", "--validate-every", 3,
        "--workers", 1,
    )  # fmt: skip
    for work in RUNS:
        shutil.copytree(finished["ssr"] / "masks", folder / work / "masks")
    jobs = [
        {
            "argv": [str(word) for word in ("retrain", *small, "--config", tiny_voc.config, "--work", folder / work)],
            "moments": moments,
            "out": str(folder / "out"),
        }
        for work, of in RUNS.items()
        for moments in of
    ]
    (folder / "forks.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(folder / "forks.py")],
        input=json.dumps(jobs), capture_output=True, text=True, check=True, timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    told = iter([json.loads(line) for line in done.stdout.splitlines()])
    return folder, {work: [next(told) for _ in of] for work, of in RUNS.items()}


@pytest.mark.parametrize("work", RUNS)
def test_runs_were_killed_and_the_last_one_ended(runs, work):
    for run, moments in zip(runs[1][work], RUNS[work], strict=True):
        assert run["code"] == (-9 if moments else 0), run["said"]


@pytest.mark.parametrize("work", RUNS)
def test_outputs_are_those_of_a_calm_run(runs, work):
    folder = Path(runs[0])
    for name in OUTPUTS:
        assert (folder / work / name).read_bytes() == (folder / "calm" / name).read_bytes(), name
    assert json.loads((folder / work / "retrained.json").read_text())["complete"] is True
    assert not list((folder / work).rglob("*.tmp"))
