"""Ctrl-C while something trains, by torchrun or mmsegmentation: that step is saved, and the end is the same bytes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from pipelines.stores.manifest import read_manifest
from tests.faults.harness import either

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
TRAININGS = {
    "align": (["align", "--iterations", "100"], "cmpa.safetensors"),
    "train": (["train", "--iterations", "32", "--batch", "4", "--cache-views", "1"], "model.safetensors"),
    "retrain": (["retrain", "--schedule", "20", "--batch", "4"], "retrained.safetensors"),
}


def ended(command: list[str], *, interrupt_at: str = "") -> tuple[int, str, str]:
    """Exit code and streams; with Ctrl-C, as a terminal sends it to all, once a line says some words."""
    process = subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stderr
    said = ""
    while interrupt_at and interrupt_at not in said:
        line = process.stderr.readline()
        assert line, said
        said += line
    if interrupt_at:
        time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
    out, rest = process.communicate(timeout=300)
    return process.returncode, out, said + rest


@pytest.fixture(scope="module")
def config(tmp_path_factory, ssr, models):
    folder = tmp_path_factory.mktemp("trainings") / "sample"
    ssr("sample", "--work", folder, "--train", 4, "--val", 1)
    config = models.put_into(folder / "sample.toml")
    for stage in (("superpixels",), ("cams",), ("refine", "--boundary", "none")):
        ssr(*stage, "--config", config, "--work", folder.parent / "work")
    return config


@pytest.mark.parametrize("training", either(TRAININGS, "train", "retrain"))
def test_interrupted_training_goes_on_to_the_same_bytes(config, warm, tmp_path, training):
    words, name = TRAININGS[training]
    launch = [str(warm.torchrun), "--standalone", "--nproc-per-node=2", "--no-python"]
    if training == "retrain":
        pytest.importorskip("mmseg", reason="needs mmsegmentation")
        launch = []
    models = []
    for work in (tmp_path / "calm", tmp_path / "stopped"):
        shutil.copytree(config.parents[1] / "work", work)
        command = [*launch, str(warm.ssr), *words, "--config", str(config), "--work", str(work)]
        if work.name == "stopped":
            code, _, said = ended(command, interrupt_at=" steps")
            assert code != 0, said
            assert "SIGINT: finishing what is under way" in said
            assert "stopped: what was computed is kept; run the same command to go on" in said
            assert "stopped at once" not in said
            assert read_manifest(work / name).complete is False
        code, out, said = ended(command)
        assert code == 0, said
        assert "next:" in out
        models.append((work / name).read_bytes())
    assert models[0] == models[1]
