"""The same bytes from one process, several devices, torchrun and a Slurm array; for Ray see faults/test_launchers.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

STAGES = ("superpixels", "cams", "refine")
PHOTOS = 6
SSR = [sys.executable, "-c", "from ssr_cli.app import main; main()"]
ENVIRONMENT = {
    **{key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "RANK", "WORLD_SIZE", "LOCAL_RANK"))},
    "OMP_NUM_THREADS": "1",  # sums of another number of threads differ in their last bits
    "PYTHONPATH": str(Path(__file__).parents[2]),
}


WARM: list[str] = []


@pytest.fixture(scope="module", autouse=True)
def warm_command(warm):
    """Most commands run in forks of a warm process, one of `--devices` in fresh ones."""
    WARM[:] = [str(warm.ssr)]


def call(*words: object, code: int | None = 0, environment: dict[str, str] | None = None, command=WARM):
    done = subprocess.run(
        [*command, *map(str, words)],
        env=ENVIRONMENT | (environment or {}),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert code is None or done.returncode == code, f"{words}: exit {done.returncode}\n{done.stdout}{done.stderr}"
    assert "Traceback" not in done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def config(tmp_path_factory, ssr, models):
    """The drawn set, with tiny models by path: fresh processes need no registration of theirs."""
    folder = tmp_path_factory.mktemp("scale") / "sample"
    ssr("sample", "--work", folder, "--train", PHOTOS, "--val", 1)
    return models.put_into(folder / "sample.toml")


@pytest.fixture(scope="module")
def whole(config):
    """All stages by one process. Copy before changing."""
    work = config.parents[1] / "whole"
    for stage in STAGES:
        call(stage, "--config", config, "--work", work)
    call("eval", "masks", "--work", work, "--no-pictures")
    return work


def contents(work: Path) -> dict[str, bytes]:
    names = [path for path in work.rglob("*") if path.suffix in {".h5", ".png", ".npy", ".csv"} or path.name == "report.json"]
    return {str(path.relative_to(work)): path.read_bytes() for path in names}


def test_devices(config, whole, tmp_path):
    work = tmp_path / "work"
    for stage, command in (("superpixels", SSR), ("cams", WARM), ("masks", WARM)):
        ran = call(stage, "--config", config, "--work", work, "--devices", "cpu,cpu", command=command)
        assert f"{stage}: {PHOTOS}/{PHOTOS}" in ran.stderr
        assert f"--work {work}\n" in ran.stdout
    ran = call("eval", "masks", "--work", work, "--no-pictures", "--devices", "cpu,cpu")
    assert "mIoU" in ran.stdout
    assert contents(work) == contents(whole)
    assert not (work / "shards").exists()
    words = ("superpixels", "--work", work, "--devices", "cpu,cpu")
    refused = call(*words, "--segments", 50, code=2)
    assert refused.stderr.count("error:") == 1
    assert "made with other options" in refused.stderr
    assert contents(work) == contents(whole)
    call(*words, "--segments", 50, "--force")
    assert contents(work) != contents(whole)
    call("superpixels", "--work", work, "--force")
    assert contents(work) == contents(whole)


def test_devices_that_cannot_be(config, tmp_path):
    words = ("superpixels", "--config", config, "--work", tmp_path)
    assert "expected devices such as 0,1" in call(*words, "--devices", "cpu,", code=2).stderr
    assert "--shard or --devices" in call(*words, "--devices", "cpu,cpu", "--shard", "0/2", code=2).stderr
    ran = call("cams", "--config", config, "--work", tmp_path, "--recipe", "clip-es", "--devices", "tpu,99", code=2)
    assert "no device" in ran.stderr
    assert ran.stderr.count("error:") == 1


def test_torchrun(config, whole, warm, tmp_path):
    work = tmp_path / "work"
    launch = [str(warm.torchrun), "--standalone", "--nproc-per-node=2", "--no-python", str(warm.ssr)]
    call("superpixels", "--config", config, "--work", work)
    ran = call("cams", "--work", work, command=launch)
    assert "shard 0/2 of the work list, by torchrun" in ran.stderr
    assert "shard 1/2 of the work list, by torchrun" in ran.stderr
    assert ran.stdout.count("next:") == 1
    call("refine", "--work", work)  # reads what two have written, and needs no merge
    call("merge", "--work", work)
    call("eval", "masks", "--work", work, "--no-pictures")
    assert contents(work) == contents(whole)


def test_slurm_array(config, whole, tmp_path):
    for index in range(3):
        environment = {"SLURM_ARRAY_TASK_ID": str(index), "SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_COUNT": "3"}
        ran = call("superpixels", "--config", config, "--work", tmp_path, environment=environment)
        assert f"shard {index}/3 of the work list, by Slurm array (--shard 0/1 takes all)" in ran.stderr
    call("merge", "--work", tmp_path)
    assert (tmp_path / "superpixels.h5").read_bytes() == (whole / "superpixels.h5").read_bytes()
    ran = call("superpixels", "--work", tmp_path, "--shard", "0/1", environment={**environment})
    assert f"{PHOTOS} already done" in ran.stderr


SBATCH = """#!/bin/bash
# Runs what sbatch would queue: each task of the array, one after the other.
last=0
for word in "$@"; do
    case $word in
        --array=0-*) last=${word#--array=0-} ;;
        --dependency=*) echo "$word" >> dependencies ;;
        --wrap) ;;
        --*) ;;
        *) command=$word ;;
    esac
done
for index in $(seq 0 "$last"); do
    export SLURM_ARRAY_TASK_ID=$index SLURM_ARRAY_TASK_MIN=0 SLURM_ARRAY_TASK_COUNT=$((last + 1))
    bash -c "$command" >> said 2>&1 || exit
done
job=$(($(cat jobs 2> /dev/null || echo 40) + 1))
echo $job > jobs
echo $job
"""


def test_slurm_script(config, whole, tmp_path):
    """`scripts/slurm.sh` as it is, with a stand-in for sbatch that runs the tasks here."""
    (tmp_path / "bin").mkdir()
    for name, text in (("sbatch", SBATCH), ("ssr", f'#!/bin/sh\nexec {WARM[0]} "$@"\n')):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    script = Path(__file__).parents[2] / "scripts/slurm.sh"
    environment = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    done = subprocess.run(
        [str(script), "2", "work", "--config", str(config)],
        cwd=tmp_path, env=ENVIRONMENT | environment, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    said = (tmp_path / "said").read_text()
    assert done.returncode == 0, done.stderr + said
    assert (tmp_path / "dependencies").read_text().split() == [
        "--dependency=aftercorr:41", "--dependency=aftercorr:42", "--dependency=afterok:43",
    ]  # fmt: skip
    assert f"refined.h5: {PHOTOS} images of 2 shards" in said
    for name in ("superpixels.h5", "cams.h5", "refined.h5"):
        assert (tmp_path / "work" / name).read_bytes() == (whole / name).read_bytes()
    assert len(list((tmp_path / "work/masks").glob("*.png"))) == PHOTOS


def test_ray_that_cannot_be(config, tmp_path):
    base = ("superpixels", "--config", config, "--work", tmp_path, "--engine", "ray")
    assert "Ray chooses the devices" in call(*base, "--devices", "cpu", code=2).stderr


def test_without_ray(config, tmp_path):
    command = [sys.executable, "-c", "import sys; sys.modules['ray'] = None\nfrom ssr_cli.app import main\nmain()"]
    ran = call("superpixels", "--config", config, "--work", tmp_path, "--engine", "ray", code=2, command=command)
    assert "--engine ray needs Ray" in ran.stderr
    assert 'pip install "ssr-wsss[ray]"' in ran.stderr
