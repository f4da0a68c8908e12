"""Backbones: what is said of them is what mmsegmentation builds, weights arrive, and others are refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pipelines.encoders.model_config import TimmModel
from pipelines.errors import SsrError, UsageError
from pipelines.mmsegmentation.backbone import IMAGENET_MEAN, Backbone, mit_backbone, timm_backbone
from pipelines.mmsegmentation.network import network
from pipelines.mmsegmentation.retrained import build
from tests.fixtures.traps import Trap

pytest.importorskip("mmengine")

SMALL_VIT = TimmModel("vit_tiny_patch16_224", {"depth": 4, "embed_dim": 48, "num_heads": 3})
SIDE = 64


def built(backbone: Backbone) -> nn.Module:
    """The backbone as mmsegmentation makes it for a network, in evaluation mode."""
    return build(network("segformer", backbone, 3, SIDE, 8)).backbone.eval()


@pytest.mark.parametrize(
    ("model", "output_stride", "strides", "patch"),
    [
        (TimmModel("resnet18"), None, (4, 8, 16, 32), None),
        (TimmModel("resnet18"), 16, (4, 8, 16, 16), None),
        (TimmModel("resnet18"), 8, (4, 8, 8, 8), None),
        (TimmModel("test_convnext"), None, (4, 8, 16, 32), None),
        (TimmModel("test_convnext"), 16, (4, 8, 16, 32), None),  # not a ResNet: not taken
        (TimmModel("test_efficientnet"), None, (4, 8, 16, 32), None),
        (TimmModel("test_vit"), None, (16,) * 4, 16),
        (TimmModel("test_vit2"), 16, (16,) * 4, 16),
        (TimmModel("vit_tiny_patch16_224", {"depth": 4, "embed_dim": 48, "num_heads": 3, "patch_size": 8}), None, (8,) * 4, 8),
        (SMALL_VIT, None, (16,) * 4, 16),
        ("mit_b0", None, (4, 8, 16, 32), None),
    ],
)
def test_maps_are_as_told(model: TimmModel | str, output_stride: int | None, strides: tuple[int, ...], patch: int | None):
    backbone = mit_backbone(model, "none") if isinstance(model, str) else timm_backbone(model, "none", output_stride)
    with torch.no_grad():
        maps = built(backbone)(torch.zeros(2, 3, SIDE, 2 * SIDE))
    sides = [(SIDE // stride, 2 * SIDE // stride) for stride in strides]
    assert [tuple(one.shape) for one in maps] == [(2, c, *side) for c, side in zip(backbone.channels, sides, strict=True)]
    assert backbone.patch == patch


def test_maps_of_a_vit_are_a_quarter_of_its_blocks_apart() -> None:
    config = timm_backbone(TimmModel("test_vit"), "none").config  # six blocks
    assert config["out_indices"] == [0, 2, 3, 5]


@pytest.mark.parametrize(
    ("model", "mean"),
    [
        (TimmModel("resnet18"), IMAGENET_MEAN),
        (TimmModel("test_vit"), (0.5, 0.5, 0.5)),  # as timm has it registered
        (TimmModel("test_vit", normalisation={"mean": [0.1, 0.2, 0.3]}), (0.1, 0.2, 0.3)),
    ],
)
def test_normalisation(model: TimmModel, mean: tuple[float, ...]) -> None:
    assert timm_backbone(model, "none").mean == mean


def random_weights(path: Path, model: TimmModel) -> dict[str, Tensor]:
    state = timm.create_model(model.name, **model.arguments).state_dict()
    state = {name: torch.rand_like(one) if one.is_floating_point() else one + 7 for name, one in state.items()}
    save_file(state, path)
    return state


@pytest.mark.parametrize("model", [TimmModel("resnet18"), TimmModel("test_convnext"), TimmModel("test_vit"), SMALL_VIT])
def test_local_weights_arrive(model: TimmModel, tmp_path: Path) -> None:
    saved = random_weights(tmp_path / "weights.safetensors", model)
    found = built(timm_backbone(model, str(tmp_path / "weights.safetensors"))).state_dict()
    # a pyramid of timm flattens its names: stages.0 is stages_0
    flat = {name.replace(".", "_"): one for name, one in saved.items()}
    compared = 0
    for name, tensor in found.items():
        key = name.removeprefix("timm_model.").removeprefix("model.").replace(".", "_")
        assert torch.equal(tensor, flat[key]), name
        compared += 1
    assert compared > 0.8 * len(saved)  # all but the classifier and what comes after the last map


def test_hub_and_none_differ_in_the_config_alone() -> None:
    none, hub = (timm_backbone(TimmModel("resnet18"), weights).config for weights in ("none", "hub"))
    assert none == {**hub, "pretrained": False}  # no file named: nothing was fetched either
    assert hub["pretrained"] is True
    assert "init_cfg" not in mit_backbone("mit_b1", "none").config
    assert mit_backbone("mit_b1", "hub").config["init_cfg"]["checkpoint"].startswith("https://download.openmmlab.com/")


def test_local_weights_of_mit_arrive(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = {name: torch.rand_like(one) for name, one in built(mit_backbone("mit_b0", "none")).state_dict().items()}
    torch.save(state, tmp_path / "mit.pth")
    backbone = built(mit_backbone("mit_b0", str(tmp_path / "mit.pth")))
    backbone.init_weights()
    assert all(torch.equal(one, state[name]) for name, one in backbone.state_dict().items())


def test_code_in_weights_of_mit_does_not_run(tmp_path: Path) -> None:
    torch.save({"state_dict": {"layer": Trap(tmp_path / "ran")}}, tmp_path / "mit.pth")
    with pytest.raises(UsageError, match="does not hold weights of mit_b0"):
        mit_backbone("mit_b0", str(tmp_path / "mit.pth"))
    assert not (tmp_path / "ran").exists()


def test_weights_of_another_mit_are_refused(tmp_path: Path) -> None:
    torch.save(built(mit_backbone("mit_b1", "none")).state_dict(), tmp_path / "b1.pth")
    with pytest.raises(UsageError, match=r"of width 64 and layers \[2, 2, 2, 2\], not mit_b0"):
        mit_backbone("mit_b0", str(tmp_path / "b1.pth"))
    torch.save({"x": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(UsageError, match="does not hold weights"):
        mit_backbone("mit_b0", str(tmp_path / "other.pth"))


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (TimmModel("resnet17"), "timm has no model 'resnet17'"),
        (TimmModel("hf-hub:evil/model"), "timm has no model 'hf-hub:evil/model'"),
        (TimmModel("local-dir:/tmp"), "timm has no model"),
        (TimmModel("swin_tiny_patch4_window7_224"), "channels last"),
        (TimmModel("vit_tiny_patch16_224", {"depth": 3}), "has 3 feature maps, expected four"),
        (TimmModel("resnet18.no_such_tag"), "timm cannot make feature maps of resnet18.no_such_tag "),
        (TimmModel("resnet18", {"depth": 3}), "timm cannot make feature maps of resnet18 .*unexpected keyword"),
        (TimmModel("mixer_s32_224"), "mixer_s32_224 has .* feature maps|timm cannot make feature maps"),
    ],
)
def test_refused_models(model: TimmModel, said: str) -> None:
    with pytest.raises(SsrError, match=said) as caught:
        timm_backbone(model, "none")
    assert "--backbone" in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("mit", [False, True])
@pytest.mark.parametrize(
    ("file", "said"), [("absent", "no weights at "), ("weights.bin", "expected hub, none or a {} of this backbone, found '")]
)
def test_refused_files(tmp_path: Path, mit: bool, file: str, said: str) -> None:
    suffix = ".pth" if mit else ".safetensors"
    path = tmp_path / (file if "." in file else file + suffix)
    (tmp_path / "weights.bin").touch()
    with pytest.raises(UsageError, match=said.format(suffix)) as caught:
        mit_backbone("mit_b0", str(path)) if mit else timm_backbone(TimmModel("resnet18"), str(path))
    assert str(path) in str(caught.value)
    assert caught.value.hint == "--backbone-weights"


@pytest.mark.parametrize(("model", "larger"), [("resnet18", "resnet50"), ("test_vit", "test_vit3")])
@pytest.mark.parametrize("content", ["larger", "other names", "no weights"])
def test_weights_that_do_not_fit_are_one_line(tmp_path: Path, model: str, larger: str, content: str) -> None:
    path = tmp_path / "weights.safetensors"
    if content == "larger":
        random_weights(path, TimmModel(larger))
    elif content == "other names":  # else training would start from random weights, unsaid
        state = timm.create_model(model).state_dict()
        save_file({f"backbone.{name}": one for name, one in state.items()}, path)
    else:
        path.write_text("nothing")
    with pytest.raises(SsrError) as caught:
        built(timm_backbone(TimmModel(model), str(path)))
    assert str(caught.value).isprintable()
