"""Killed at any moment and run again: nothing committed is lost or redone, and the bytes are those of an undisturbed run.

One process imports everything once and forks a child for each run. A child kills itself with SIGKILL right before or after its
n-th rename or removal of a file (the moments at which a store could break), or is killed by the clock.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

IMAGES = 40
SCRIPT = """\
import json, os, signal, sys, time
import open_clip, torch
from pathlib import Path
open_clip.add_model_config(sys.argv[1])
torch.set_num_threads(1)
from pipelines.datasets import voc
from pipelines.stages import cams
from pipelines.stages.refine import target as refine_target
from pipelines.stores.array_store import ArrayReader, ArrayWriter, store_exists
from ssr_cli.app import main
from ssr_cli.commands import cams as _, refine as _  # noqa

ArrayWriter.__init__.__defaults__ = (4, 20.0)  # parts of four images


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def child(argv, die_at, log):
    calls = 0

    def counted(function):
        def call(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == die_at:
                die()
            result = function(*args, **kwargs)
            calls += 1
            if calls == die_at:
                die()
            return result
        return call

    def logged(kind, function, name):
        def call(*args, **kwargs):
            os.write(log, f"{kind} {name(*args)}\\n".encode())
            time.sleep(0.004)
            return function(*args, **kwargs)
        return call

    Path.replace, Path.unlink = counted(Path.replace), counted(Path.unlink)
    ArrayWriter.add = logged("array", ArrayWriter.add, lambda writer, image_id, *rest: image_id)
    refine_target.make_mask = logged("mask", refine_target.make_mask, lambda job, options: job.image_id)
    sys.argv = ["ssr", *argv]
    try:
        main()
    except SystemExit as stop:
        sys.stdout.flush()
        os._exit(stop.code or 0)  # no finalisation of torch: it takes longer than the run


for run in json.loads(sys.stdin.read()):
    store = Path(run["store"])
    before = []
    if store_exists(store):
        with ArrayReader(store) as reader:
            before = reader.ids()
    masks_before = sorted(path.stem for path in (store.parent / "masks").glob("*.png"))
    log_path = Path(run["log"])
    log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    pid = os.fork()
    if pid == 0:
        out = os.open(str(log_path) + ".out", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        child(run["argv"], run["die_at"], log)
        os._exit(99)
    if run["after"] is not None:
        time.sleep(run["after"])
        os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    lines = [line.split() for line in log_path.read_text().splitlines()]
    print(json.dumps({
        "code": os.waitstatus_to_exitcode(status), "committed": before, "masks": masks_before,
        "arrays": [name for kind, name in lines if kind == "array"], "made": [name for kind, name in lines if kind == "mask"],
        "said": Path(str(log_path) + ".out").read_text()[-800:],
    }), flush=True)
"""
MOMENTS = (6, 13, 22, 33, 46)
SECONDS = (0.4,)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, make_voc, models, tiny_voc):
    """Runs of both stages, disturbed and not, as the script told them; and the two work directories."""
    folder = tmp_path_factory.mktemp("kill")
    photos = {f"photo_{n:02d}": ((48, 32) if n % 3 else (32, 48), ("cat", "dog")[: 1 + n % 2]) for n in range(IMAGES)}
    make_voc(folder / "VOC2012", photos, masks=False)
    script = folder / "forks.py"
    script.write_text(SCRIPT)
    jobs = []
    for work in ("calm", "killed"):
        for stage, store in (("cams", "cams"), ("refine", "refined")):
            argv = [stage, "--config", tiny_voc.config, "--root", folder / "VOC2012", "--work", folder / work]
            calm = {"argv": [*map(str, argv), "--recipe", "clip-es"], "store": str(folder / work / f"{store}.h5")}
            calm |= {"die_at": 0, "after": None, "log": str(folder / "log"), "what": f"{work} {stage}"}
            if work == "killed":
                jobs += [{**calm, "die_at": moment} for moment in MOMENTS] + [{**calm, "after": s} for s in SECONDS]
            jobs.append(calm)
    done = subprocess.run(
        [sys.executable, str(script), str(models.clip_config)],
        input=json.dumps(jobs), capture_output=True, text=True, check=True, timeout=300,
    )  # fmt: skip
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(told) == len(jobs)
    return folder, [{"what": job["what"], **line} for job, line in zip(jobs, told, strict=True)]


@pytest.mark.parametrize("stage", ["cams", "refine"])
def test_runs_were_really_broken_off(runs, stage):
    of = [run for run in runs[1] if run["what"] == f"killed {stage}"]
    assert [run["code"] for run in of].count(-9) >= 4, [run["said"] for run in of]
    assert of[-1]["code"] == 0, of[-1]["said"]
    assert any(0 < len(run["committed"]) < IMAGES for run in of)
    assert {run["code"] for run in of} <= {0, -9}, [run["said"] for run in of]


@pytest.mark.parametrize("stage", ["cams", "refine"])
def test_nothing_committed_is_lost_or_redone(runs, stage):
    of = [run for run in runs[1] if run["what"] == f"killed {stage}"]
    before: set[str] = set()
    for run in of:
        assert before <= set(run["committed"])
        before = set(run["committed"])
        assert not before & set(run["arrays"])
        assert not set(run["masks"]) & before & set(run["made"])  # a mask counts once its refined CAM is committed


@pytest.mark.parametrize("store", ["cams.h5", "refined.h5"])
def test_stores_are_those_of_an_undisturbed_run(runs, store):
    folder, _ = runs
    assert (folder / "killed" / store).read_bytes() == (folder / "calm" / store).read_bytes()


def test_masks_are_those_of_an_undisturbed_run(runs):
    folder, _ = runs
    calm = {path.name: path.read_bytes() for path in (folder / "calm/masks").glob("*.png")}
    assert len(calm) == IMAGES
    assert {path.name: path.read_bytes() for path in (folder / "killed/masks").glob("*.png")} == calm


def test_no_litter_is_left(runs):
    folder, _ = runs
    left = [path.name for path in (folder / "killed").rglob("*") if path.suffix == ".tmp" or path.name.endswith(".parts")]
    assert left == []


def test_manifests_agree_but_for_counts_and_times(runs):
    folder, _ = runs

    def manifest(work: str, name: str) -> dict[str, object]:
        content = json.loads((folder / work / f"{name}.json").read_text())
        return {key: value for key, value in content.items() if key not in {"counts", "updated"}}

    for name in ("cams", "refined", "masks"):
        assert manifest("killed", name) == manifest("calm", name)
        assert manifest("killed", name)["complete"] is True


def test_killed_directory_tells_what_to_do_next(runs, ssr, tmp_path):
    folder, _ = runs
    assert f"next: ssr eval --work {folder / 'killed'}" in ssr("status", "--work", Path(folder / "killed")).out
