"""Retrained networks as files: the same logits come back, and every other file is one line, with nothing fetched or run."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from pipelines.datasets.base import Sample
from pipelines.encoders.model_config import TimmModel
from pipelines.errors import SsrError, UsageError
from pipelines.method.onnx_model import onnx_predictor
from pipelines.mmsegmentation.config import photo_scale
from pipelines.mmsegmentation.onnx_network import RetrainedNetwork
from pipelines.mmsegmentation.retrained import (
    Design,
    Retrained,
    RetrainedPredictor,
    build,
    network_of_file,
    read_retrained,
    write_retrained,
)
from pipelines.models.onnx_file import OnnxModel
from pipelines.options.retrain import NETWORKS
from pipelines.options.train import PredictOptions
from tests.fixtures.model_files import Change, damages, rewritten

pytest.importorskip("mmengine")

NAMES = ("cat", "dog", "bird")
VIT = TimmModel("vit_tiny_patch16_224", {"depth": 4, "embed_dim": 48, "num_heads": 3}, {"mean": [0.4, 0.5, 0.6]})
DESIGN = Design("segformer", VIT, 16, NAMES, 64)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    """Whoever wants out fails, and says so."""

    def refuse(*_: object, **__: object) -> None:
        pytest.fail("something was fetched")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def random_network(design: Design) -> nn.Module:
    """Random weights and batch statistics, as after some training."""
    torch.manual_seed(0)
    model = build(design.config())
    for name, one in model.state_dict().items():
        if name.endswith(("running_mean", "running_var")):
            one.copy_(torch.rand_like(one) + 0.5)
    return model.eval()


@pytest.fixture
def model(tmp_path) -> Path:
    write_retrained(tmp_path / "retrained.safetensors", random_network(DESIGN), DESIGN, "pseudo", 17)
    return tmp_path / "retrained.safetensors"


def logits(model: nn.Module, folder: Path, **options: Any) -> torch.Tensor:
    """Of a photo that no patch divides."""
    pixels = np.random.default_rng(0).integers(0, 256, (70, 93, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "photo.png")
    predictor = RetrainedPredictor(
        Retrained(model, NAMES, 64, "pseudo", 17), PredictOptions(**options), torch.device("cpu"), torch.float32
    )
    return predictor.logits([predictor.photo(Sample("photo", folder / "photo.png", ()), Image.fromarray(pixels))])


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


class InPlaceOfOnnx:
    """A session of onnxruntime that runs the network from which a file would be written."""

    def __init__(self, retrained: Retrained) -> None:
        self.network = RetrainedNetwork(retrained).eval()

    def run(self, _: list[str], inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        return [self.network(torch.from_numpy(inputs["pixels"])).numpy()]


def check_onnx(model: nn.Module, folder: Path) -> None:
    """What goes around an ONNX file, and what is in it, do the same as mmsegmentation."""
    pixels = np.random.default_rng(0).integers(0, 256, (70, 93, 3), dtype=np.uint8)
    retrained = Retrained(model.requires_grad_(False), NAMES, 64, "pseudo", 17)
    predictor = onnx_predictor(OnnxModel(InPlaceOfOnnx(retrained), NAMES, 1, "pseudo", photo_scale(64)), PredictOptions())
    found = predictor.logits([predictor.photo(Sample("photo", folder / "photo.png", ()), Image.fromarray(pixels))])
    torch.testing.assert_close(found, logits(model, folder), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_network_for_onnx_does_what_mmsegmentation_does(tmp_path, name):
    backbone = TimmModel("test_resnet") if name == "deeplabv3plus" else VIT
    check_onnx(random_network(replace(DESIGN, model=name, backbone=backbone)), tmp_path)


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


OWN = """\
open(RAN, "w").close()
model = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(type="SegDataPreProcessor", mean=[120.0] * 3, std=[60.0] * 3, bgr_to_rgb=True, size=(32, 32)),
    backbone=dict(type="ResNetV1c", depth=18, base_channels=8),
    decode_head=dict(type="FCNHead", in_channels=64, channels=8, num_convs=1, num_classes=19, out_channels=19),
    auxiliary_head=[dict(type="FCNHead", in_channels=32, in_index=2, channels=8, num_convs=1, num_classes=19)],
    test_cfg=dict(mode="whole"),
)
"""


@pytest.fixture
def own(tmp_path) -> tuple[Path, Path, nn.Module]:
    """A network of a config file: that file, what was written of it, and the network."""
    from pipelines.mmsegmentation.imports import import_mmsegmentation

    import_mmsegmentation()
    file, path = tmp_path / "own.py", tmp_path / "retrained.safetensors"
    file.write_text(OWN.replace("RAN", repr(str(tmp_path / "ran"))))
    design = Design(str(file), None, 0, NAMES, 64)
    written = random_network(design)
    write_retrained(path, written, design, "pseudo", 17)
    (tmp_path / "ran").unlink()
    return file, path, written


def test_a_network_of_a_config_file_is_made_for_our_classes(own):
    model = network_of_file(own[0], 4, 64)
    assert model["decode_head"]["num_classes"] == model["auxiliary_head"][0]["num_classes"] == 4
    assert "out_channels" not in model["decode_head"]
    assert tuple(model["data_preprocessor"]["size"]) == (64, 64)
    assert model["backbone"] == {"type": "ResNetV1c", "depth": 18, "base_channels": 8}


def test_round_trip_of_a_config_file(own, tmp_path):
    file, path, written = own
    found = read_retrained(path, config_file=file)
    assert (found.classes, found.crop, found.iteration) == (NAMES, 64, 17)
    assert torch.equal(logits(found.model, tmp_path), logits(written, tmp_path))
    with safe_open(path, framework="pt") as opened:
        assert str(tmp_path) not in opened.metadata()["note"]


@pytest.mark.parametrize(
    "change", [("", ""), ("bgr_to_rgb=True", "bgr_to_rgb=False"), ("mean=[120.0] * 3, std=[60.0] * 3, ", "")]
)
def test_the_network_of_a_config_file_for_onnx(own, tmp_path, change):
    own[0].write_text(own[0].read_text().replace(*change))
    check_onnx(random_network(Design(str(own[0]), None, 0, NAMES, 64)), tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (('mode="whole"', 'mode="slide", crop_size=(32, 32), stride=(16, 16)'), "slides a window over an image"),
        (("size=(32, 32)", "size=(32, 32), test_cfg=dict(size=(96, 96))"), "pads images to one size"),
    ],
)
def test_a_config_file_of_more_than_one_pass_is_not_written_as_onnx(own, change, said):
    own[0].write_text(own[0].read_text().replace(*change))
    written = random_network(Design(str(own[0]), None, 0, NAMES, 64))
    with pytest.raises(UsageError, match=f"the config file of this network {said}, which ONNX is not written for"):
        RetrainedNetwork(Retrained(written, NAMES, 64, "pseudo", 17))


@pytest.mark.parametrize("absent", [None, "absent.py"])
@pytest.mark.parametrize("named", [False, True])
def test_a_network_of_a_config_file_needs_it(own, tmp_path, absent, named):
    file, path, _ = own
    if named:
        rewritten(path, network(model=str(file)))
    with pytest.raises(UsageError, match="holds a network of a config file, which is not run from elsewhere") as caught:
        read_retrained(path, "--from", absent and tmp_path / absent)
    assert caught.value.hint == "--from retrained, in the work directory that trained it"
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("change", [("base_channels=8", "base_channels=16"), ("[60.0]", "[61.0]"), ('"whole"', '"slide"')])
def test_a_config_file_that_changed_is_refused(own, change):
    file, path, _ = own
    file.write_text(file.read_text().replace(*change))
    with pytest.raises(UsageError, match=f"{file} does not describe the network of {path} any more .ssr retrain --force"):
        read_retrained(path, config_file=file)


def test_other_lines_of_a_config_file_do_not_count(own):
    file, path, _ = own
    file.write_text(file.read_text() + "\n# a note\nother = 3\n")
    assert read_retrained(path, config_file=file).iteration == 17


def test_a_config_file_does_not_matter_to_a_known_network(model, tmp_path):
    (tmp_path / "config.py").write_text("raise ValueError('run')")
    assert read_retrained(model, config_file=tmp_path / "config.py").iteration == 17


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("x = 1", "is no mmsegmentation config with a decode_head \\(KeyError: 'model'"),
        ("model = dict(type='EncoderDecoder')", "KeyError: 'decode_head'"),
        ("model = 3", "is no mmsegmentation config with a decode_head "),
        ("model = dict(decode_head=3)", "is no mmsegmentation config with a decode_head"),
        ("model = dict(decode_head=dict(), auxiliary_head=[3])", "is no mmsegmentation config with a decode_head"),
        ("raise ValueError('no luck')", "ValueError: no luck"),
        ("raise ValueError('two\\nlines')", "ValueError: two"),
        ("model = (", "SyntaxError"),
        ("_base_ = 'absent.py'", "FileNotFoundError: .*absent.py"),
    ],
)
def test_a_file_without_a_network_is_one_line(tmp_path, content, said):
    path = tmp_path / "own.py"
    path.write_text(content)
    with pytest.raises(UsageError, match=said) as caught:
        network_of_file(path, 4, 64)
    assert str(path) in str(caught.value)
    assert caught.value.hint == "--model"
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "config",
    [
        {"type": "Nope"},
        {"type": "EncoderDecoder", "backbone": {"type": "ResNet", "depth": 7}, "decode_head": {"type": "FCNHead"}},
        {"type": "EncoderDecoder", "backbone": {"type": "TIMMBackbone", "model_name": "nope"}, "decode_head": {}},
    ],
)
def test_what_cannot_be_built_is_one_line(config):
    with pytest.raises(SsrError, match="mmsegmentation cannot build the network") as caught:
        build(config)
    assert str(caught.value).isprintable()
