"""A stage that is finished, or refused, loads no weights and leaves its manifest as it is."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.encoders import weights as weights_module

DONE = {
    "superpixels": ("", "--segments 50", "superpixels.json"),
    "cams": ("", "--flip", "cams.json"),
    "refine": ("", "--background-power 3", "masks.json"),
    "align": ("--iterations 2 --tokens 8 --hidden 8 --batch 2", "--seed 1", "cmpa.json"),
    "train": ("--iterations 2 --batch 2 --crop 64 --hidden 16 --decoder-heads 2 --par-iterations 0", "--seed 1", "model.json"),
    "predict": ("--output {work}/maps", "--no-flip", "maps.json"),
}
"""Flags of a stage, flags that it refuses once it is done, and its manifest."""
SAYS_MODULES = "import sys\nfrom ssr_cli.app import main\ntry:\n main()\nfinally:\n print('modules', *sys.modules)\n"


def state(work: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in work.rglob("*.json") if path.name != "work.json"
    }


@pytest.fixture
def work(finished, model, tmp_path) -> Path:
    work = Path(shutil.copytree(finished["ssr"], tmp_path / "work"))
    shutil.copy(model, work / "model.safetensors")
    return work


@pytest.mark.parametrize("stage", DONE)
def test_nothing_is_loaded_or_written(ssr, work, monkeypatch, stage):
    own, other, manifest = DONE[stage]
    command = [stage, "--work", work, *own.format(work=work).split()]
    ssr(*command)
    before = state(work)
    assert str(work / manifest) in before
    monkeypatch.setattr(weights_module, "read_state", lambda path: pytest.fail(f"{path} was loaded"))
    ssr(*command)
    assert state(work) == before
    assert "was made with other options" in ssr(*command, *other.split(), code=2).err
    assert state(work) == before


@pytest.mark.parametrize("stage", ["cams", "refine", "predict"])
def test_model_libraries_are_not_imported(ssr, work, stage):
    command = [stage, "--work", str(work), *DONE[stage][0].format(work=work).split()]
    ssr(*command)
    ran = subprocess.run([sys.executable, "-c", SAYS_MODULES, *command], check=True, capture_output=True, text=True)
    modules = set(ran.stdout.splitlines()[-1].split())
    assert "torch" in modules
    assert not {"open_clip", "timm", "torchvision", "sklearn", "scipy", "matplotlib"} & modules


def test_after_an_earlier_stage_the_printed_command_runs(finished, ssr, tmp_path):
    """What was made of the older CAMs is refused without --force, so the line has it, and the status says it."""
    work = Path(shutil.copytree(finished["ssr"], tmp_path / "work"))
    said = ssr("cams", "--force", "--dense-scale", 20, "--work", work).out
    line = f"next: ssr refine --force --work {work}"
    assert line in said
    said = ssr("status", "--work", work).out
    assert line in said
    assert "older" in said
    assert "next: ssr eval" in ssr(*line.split()[2:]).out
    assert "older" not in ssr("status", "--work", work).out
