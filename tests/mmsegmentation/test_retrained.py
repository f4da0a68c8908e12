"""Retrained networks as files: the same logits come back, and every other file is one line, with nothing fetched or run."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from pipelines.encoders.model_config import TimmModel
from pipelines.errors import UsageError
from pipelines.mmsegmentation.retrained import (
    read_retrained,
    write_retrained,
)
from tests.fixtures.model_files import Change, damages, rewritten

from .networks import DESIGN, VIT, logits, random_network

pytest.importorskip("mmengine")


@pytest.mark.parametrize(
    "design",
    [
        DESIGN,
        replace(DESIGN, model="upernet", channels=24),
        replace(DESIGN, model="deeplabv3plus", backbone=TimmModel("test_resnet")),
        replace(DESIGN, backbone=TimmModel("test_vit", {"img_size": 64})),
        replace(DESIGN, backbone="mit_b0"),
        replace(DESIGN, classes=("cat",)),
    ],
)
@pytest.mark.parametrize("supervision", ["pseudo", "masks"])
def test_round_trip(tmp_path, design, supervision):
    written = random_network(design)
    path = tmp_path / "new/retrained.safetensors"
    write_retrained(path, written, design, supervision, 17)
    found = read_retrained(path)
    assert (found.classes, found.crop, found.supervision, found.iteration) == (design.classes, 64, supervision, 17)
    assert not found.model.training
    assert not any(parameter.requires_grad for parameter in found.model.parameters())
    expected = logits(written, tmp_path)
    assert expected.shape[1] == len(design.classes) + 1
    assert expected.std() > 0
    assert torch.equal(logits(found.model, tmp_path), expected)


def test_scales_and_mirror_images_are_averaged(model, tmp_path):
    network = read_retrained(model).model
    both = logits(network, tmp_path, scales=(1.0,), flip=True)
    plain = logits(network, tmp_path, scales=(1.0,), flip=False)
    assert plain.shape == both.shape == (1, 4, 64, 85)  # 70 x 93 with the shorter side of the crop
    assert not torch.equal(both, plain)
    assert torch.equal(both.amax(1), torch.zeros(1, 64, 85))
    assert logits(network, tmp_path, scales=(0.5, 1.0, 1.5), flip=False).shape == both.shape


def test_the_file_holds_no_path(model, tmp_path):
    with safe_open(model, framework="pt") as file:
        note = file.metadata()["note"]
    assert str(tmp_path) not in note
    assert json.loads(note)["network"]["backbone"]["name"] == VIT.name


def backbone(name: object) -> Change:
    return lambda note: note["network"]["backbone"].update(name=name)


def arguments(**changed: object) -> Change:
    return lambda note: note["network"]["backbone"]["arguments"].update(changed)


def normalisation(**changed: object) -> Change:
    return lambda note: note["network"]["backbone"]["normalisation"].update(changed)


def network(**changed: object) -> Change:
    return lambda note: note["network"].update(changed)


WEIGHT = "decode_head.conv_seg.weight"
NOTES, TENSORS = damages(WEIGHT)
NOTES |= {
    "no network": lambda note: note.pop("network"),
    "network lacks its backbone": lambda note: note["network"].pop("backbone"),
    "another network": network(model="upernet"),
    "another backbone": backbone("test_vit"),
    "a pyramid": backbone("resnet18"),
    "mit": network(backbone="mit_b0"),
    "no backbone": network(backbone=None),
    "backbone is a list": network(backbone=["resnet18"]),
    "backbone of the hub": backbone("hf-hub:evil/model"),
    "backbone of a folder": backbone("local-dir:/x"),
    "backbone is unknown": backbone("evil"),
    "backbone is a number": backbone(3),
    "an argument is a string": arguments(checkpoint_path="/etc/passwd"),
    "an argument is an object": arguments(pretrained_cfg_overlay={"hf_hub_id": "evil/model"}),
    "an argument is a list": arguments(out_indices=[0, 1, 2, 3]),
    "pretrained": arguments(pretrained=True),
    "an unknown argument": arguments(evil=1),
    "another type": arguments(type=1),
    "arguments are a list": lambda note: note["network"]["backbone"].update(arguments=[1]),
    "a huge depth": arguments(depth=10**9),
    "a huge width": arguments(embed_dim=10**9),
    "no number": arguments(depth=float("nan")),
    "no depth": arguments(depth=0),
    "another depth": arguments(depth=5),
    "no heads": arguments(num_heads=0),
    "no patch": arguments(patch_size=0),
    "a fraction": arguments(embed_dim=48.5),
    "huge channels": network(channels=10**9),
    "channels are a word": network(channels="16"),
    "other channels": network(channels=8),
    "a huge crop": network(crop=10**9),
    "normalisation is a word": normalisation(mean="abc"),
    "normalisation is endless": normalisation(mean=[10**400] * 3),
    "normalisation is no number": normalisation(mean=[float("nan")] * 3),
    "normalisation of no channel": normalisation(mean=[], std=[]),
    "normalisation by nothing": normalisation(std=[0.0, 0.0, 0.0]),
    "too many classes": lambda note: note.update(classes=[str(index) for index in range(5000)]),
}


TENSORS |= {
    "none": lambda tensors: tensors.clear(),
}


@pytest.mark.parametrize("case", [*NOTES, *TENSORS])
def test_a_damaged_file_is_one_line(model, case):
    rewritten(model, NOTES.get(case), TENSORS.get(case))
    started = time.monotonic()
    with pytest.raises(UsageError, match=f"^{model} is damaged: its tensors are not those of its network .--from") as caught:
        read_retrained(model, "--from")
    assert str(caught.value).isprintable()
    assert time.monotonic() - started < 10


def test_rewriting_alone_does_no_harm(model):
    rewritten(model, None)
    assert read_retrained(model).iteration == 17


def test_sizes_within_reason_do_not_fill_the_memory(model, monkeypatch):
    """A small file that describes a large network is found out before it is built."""
    made: list[int] = []
    register = nn.Module.register_parameter

    def counting(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        made.append(param.numel() if param is not None and param.device.type != "meta" else 0)
        register(self, name, param)

    rewritten(model, arguments(depth=16, embed_dim=384))  # up to 4096 of each pass: three terabytes
    monkeypatch.setattr(nn.Module, "register_parameter", counting)
    with pytest.raises(UsageError, match="is damaged"):
        read_retrained(model)
    assert sum(made) < 3e6


def replaced(**metadata: str) -> Callable[[Path], object]:
    return lambda path: save_file({WEIGHT: torch.zeros(2)}, path, metadata=metadata)


def renamed(name: str) -> Callable[[Path], object]:
    return lambda path: rewritten(path, lambda note: note.update(format=name))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: path.unlink(), "no checkpoint at"),
        (lambda path: path.write_text("no model"), "not a readable .safetensors file"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "not a readable .safetensors file"),
        (replaced(note='{"format": "ssr retr'), "not a readable .safetensors file"),
        (replaced(), "was not written by ssr"),
        (replaced(note="[1]"), "was not written by ssr"),
        (renamed("ssr segmentation decoder 1"), "does not hold a retrained network .--from: a file written by `ssr retrain`"),
        (renamed("ssr retrained network 2"), "does not hold a retrained network"),
    ],
)
def test_another_file_is_one_line(model, make, said):
    make(model)
    with pytest.raises(UsageError, match=said) as caught:
        read_retrained(model, "--from")
    assert str(model) in str(caught.value)
    assert "--from" in str(caught.value)
    assert str(caught.value).isprintable()
