"""`ssr train` opens ground truth where a person asks for it, and nowhere else."""

from __future__ import annotations

import builtins
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipelines.encoders.weights import resolve_clip
from pipelines.models.segmenter import read_segmenter
from pipelines.stages.train import stage as train
from tests.fixtures.heard import Heard

WORDS = (
    "--iterations", 4, "--batch", 2, "--crop", 64, "--hidden", 16, "--decoder-layers", 1, "--decoder-heads", 2,
    "--par-iterations", 1, "--save-every", 2,
)  # fmt: skip


@pytest.fixture
def root(tiny_voc, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_voc.root, tmp_path / "VOC2012"))


@pytest.fixture
def opened(monkeypatch) -> list[str]:
    """Files below a folder of ground truth that were opened: Pillow and pathlib go through these two."""
    found: list[str] = []
    plain, raw = builtins.open, os.open

    def watch(path: object, *args: object, **kwargs: object) -> object:
        if isinstance(path, str | Path) and "SegmentationClass" in str(path):
            found.append(Path(path).name)
        return plain(path, *args, **kwargs)  # type: ignore[call-overload]

    def watch_raw(path: object, *args: object, **kwargs: object) -> object:
        if isinstance(path, str | Path) and "SegmentationClass" in str(path):
            found.append(Path(path).name)
        return raw(path, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "open", watch)
    monkeypatch.setattr("io.open", watch)
    monkeypatch.setattr(os, "open", watch_raw)
    return found


CASES = {
    # flags -> photos whose mask is opened
    "weclip": (("--recipe", "weclip", "--clip-layers", 2, "--filter-from", 2), set()),
    "ssr": (("--recipe", "ssr",), set()),
    "ssr, heads": (("--recipe", "ssr", "--ckpt", "auto", "--train-heads"), set()),
    "validation": (("--recipe", "weclip", "--clip-layers", 2, "--val-split", "val"), {"e_pair.png", "f_car.png"}),
    "masks": (
        ("--recipe", "ssr", "--supervision", "masks"),
        {"a_cat.png", "b_trio.png", "c_bird.png", "d_empty.png", "e_pair.png", "f_car.png"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_ground_truth_is_opened_only_when_asked(finished, tiny_voc, root, ssr, opened, tmp_path, case):
    flags, expected = CASES[case]
    made = ("--config", tiny_voc.config, "--root", root, "--work", tmp_path / "w")
    (tmp_path / "w").mkdir()
    for name in ("superpixels.h5", "superpixels.json"):
        shutil.copy(finished["ssr"] / name, tmp_path / "w" / name)
    if "--ckpt" in flags:
        ssr("align", *made, "--iterations", 2, "--tokens", 8, "--hidden", 8)
    assert opened == []
    ran = ssr("train", *made, *WORDS, *flags)
    assert set(opened) == expected
    said = "trained on ground-truth masks: an upper bound, not a weakly supervised result"
    assert (said in re.sub(r"\s+", " ", ran.err)) == (case == "masks")
    opened.clear()
    ran = ssr("train", *made, *WORDS, *flags)  # nothing to do
    assert opened == []
    assert ("upper bound" in ran.err) == (case == "masks")


def test_the_model_is_the_same_without_any_mask_on_disk(tiny_voc, root, ssr, tmp_path):
    """Whatever way a file could be opened: it cannot be what is not there."""
    words = ("train", "--config", tiny_voc.config, *WORDS, "--recipe", "weclip", "--clip-layers", 2)
    ssr(*words, "--work", tmp_path / "with")
    shutil.rmtree(root / "SegmentationClass")
    ssr(*words, "--root", root, "--work", tmp_path / "without")
    models = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("with", "without")]
    assert models[0] == models[1]
    ran = ssr(*words, "--root", root, "--work", tmp_path / "masks", "--supervision", "masks", code=1)
    assert "--supervision pseudo" in (tmp_path / "masks/failures.jsonl").read_text()
    assert "stopped at bad image 1" in ran.err


@pytest.mark.parametrize("views", [0, 1])
def test_corrected_masks_go_before_pseudo_masks(finished, workspace_in, run_train, train_sections, tmp_path, views):
    """Corrections of all photos make the model that ground truth makes if it is the same; and it says what it learned from."""
    heard = {}

    def model(name: str, mended: list[str], **changed: object) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        workspace = workspace_in(tmp_path / name)
        for part in ("superpixels.h5", "superpixels.json"):
            workspace.work.mkdir(exist_ok=True)
            shutil.copy(finished["ssr"] / part, workspace.work / part)
        for image_id in mended:
            workspace.corrected.mkdir(exist_ok=True)
            shutil.copy(workspace.dataset.mask_path(image_id), workspace.corrected)
        heard[name] = Heard()
        train.run(workspace, train_sections("ssr", ckpt=None, cache_views=views, iterations=2, **changed), heard[name])
        manifest = json.loads(workspace.model.with_suffix(".json").read_text())["settings"]
        supervision = read_segmenter(workspace.model, resolve_clip(workspace.clip.model, workspace.clip.pretrained)).supervision
        return manifest | {"says": supervision}, load_file(workspace.model)

    ids = [sample.image_id for sample in workspace_in(tmp_path).dataset.samples]
    truth, all_true = model("truth", [], supervision="masks")
    corrected, all_corrected = model("corrected", ids)
    some, _ = model("some", ids[:2])
    without, all_pseudo = model("without", ids, corrected=False)
    assert all(torch.equal(all_true[name], tensor) for name, tensor in all_corrected.items())
    assert any(not torch.equal(all_pseudo[name], tensor) for name, tensor in all_corrected.items())
    says = [made["says"] for made in (truth, corrected, some, without)]
    assert says == ["masks", "corrected", "corrected", "pseudo"]
    assert some["corrected"]["images"] == 2
    assert "corrected" not in without
    assert f"2 corrected masks and {len(ids) - 2} pseudo-masks (--no-corrected: pseudo-masks alone)" in heard["some"].notes
