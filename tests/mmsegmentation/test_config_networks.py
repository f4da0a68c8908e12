"""Networks of a config file of the user's, and networks as they are written for ONNX."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
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
    build,
    network_of_file,
    read_retrained,
    write_retrained,
)
from pipelines.models.onnx_file import OnnxModel
from pipelines.options.retrain import NETWORKS
from pipelines.options.train import PredictOptions
from tests.fixtures.model_files import rewritten

from .networks import DESIGN, NAMES, VIT, logits, random_network

pytest.importorskip("mmengine")


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
        rewritten(path, lambda note: note["network"].update(model=str(file)))
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
