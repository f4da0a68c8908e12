"""Weights that are nowhere: every command that needs them says so before it computes or clears anything."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.datasets import image as image_module
from pipelines.encoders.text import read_bank, write_bank

FLAGS = {
    "clip": ("--clip-model", "ViT-B-16-quickgelu", "--clip-pretrained", "openai"),
    "dino": ("--dino-model", "vit_small_patch16_224.dino", "--dino-pretrained", "hub"),
}
SILENT = "HF_HUB_OFFLINE is set; bring"
SAID = {
    "clip": f"cannot fetch CLIP ViT-B-16-quickgelu / openai: {SILENT} open_clip_model.safetensors (599 MB)",
    "dino": f"cannot fetch DINO vit_small_patch16_224.dino: {SILENT} model.safetensors (87 MB)",
}


@pytest.fixture
def work(finished, tmp_path, monkeypatch) -> Path:
    """A finished work directory, an empty cache and weights folder; no photo may be opened."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SSR_WEIGHTS", str(tmp_path / "weights"))

    def opened(*_: object, **__: object) -> None:
        raise AssertionError("a photo was decoded")

    monkeypatch.setattr(image_module.Image, "open", opened)
    return Path(shutil.copytree(finished["ssr"], tmp_path / "work"))


def contents(work: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(work)): path.read_bytes()
        for path in work.rglob("*")
        if path.is_file() and path.name != "work.json" and path.suffix != ".lock"
    }


def unnamed_banks(models, folder: Path) -> tuple[str | Path, ...]:
    """Flags of text banks that do not say which CLIP made them."""
    flags: list[str | Path] = []
    for flag, bank in (("--text-bank", models.voc_bank), ("--background-bank", models.background_bank)):
        write_bank(folder / bank.name, replace(read_bank(bank), model=""))
        flags += [flag, folder / bank.name]
    return tuple(flags)


@pytest.mark.parametrize(("command", "which"), [("cams", "clip"), ("refine", "clip"), ("refine", "dino")])
@pytest.mark.parametrize("state", ["other options", "--force", "new"])
def test_stages(ssr, work, models, command, which, state):
    flags = [*FLAGS[which], *(unnamed_banks(models, work.parent) if command == "cams" else ())]
    if state == "new":
        for path in work.glob("cams.*" if command == "cams" else "refined.*"):
            path.unlink()
        (work / "masks.json").unlink()
    before = contents(work)
    if state == "other options":  # refused before any weights are asked for
        assert "was made with other options" in ssr(command, "--work", work, *flags, code=2).err
    else:
        ran = ssr(command, "--work", work, *flags, *(["--force"] if state == "--force" else []), code=1)
        assert ran.err.startswith(f"error: {SAID[which]}")
        assert f"put it at {work.parent}{os.sep}weights{os.sep}" in ran.err
        assert len(ran.err.splitlines()) == 1
    assert contents(work) == before


def test_text(ssr, work, tiny_voc):
    ran = ssr("text", work.parent / "bank.safetensors", "--config", tiny_voc.config, *FLAGS["clip"], code=1)
    assert ran.err.startswith(f"error: {SAID['clip']}")
    assert not (work.parent / "bank.safetensors").exists()


def test_doctor_says_both_before_it_looks_at_photos(ssr, work, tiny_voc):
    ran = ssr("doctor", "--config", tiny_voc.config, *FLAGS["clip"], *FLAGS["dino"], code=None)
    lines = ran.out.splitlines()
    weights = [number for number, line in enumerate(lines) if " weights: " in line]
    assert [
        lines[number].split(" weights: ")[1].startswith(SAID[which]) for number, which in zip(weights, SAID, strict=True)
    ] == [True] * 2
    assert not any(" dataset: " in line for line in lines[: weights[-1]])


def test_superpixels_need_no_weights(ssr, work, tiny_voc, monkeypatch):
    monkeypatch.undo()
    ran = ssr("superpixels", "--config", tiny_voc.config, "--work", work)
    assert "6 already done" in ran.err
