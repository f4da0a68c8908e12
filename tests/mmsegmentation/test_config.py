"""The config is a file that a person can read, and says what the sections say."""

from __future__ import annotations

import ast
import keyword
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.mmsegmentation.backbone import Backbone
from pipelines.mmsegmentation.config import SplitFiles, _source, config, config_text
from pipelines.mmsegmentation.network import network
from pipelines.options.retrain import RetrainOptions

GOLDEN = Path(__file__).with_name("config.golden.txt")
"""After a wanted change: ``GOLDEN.write_text(text())``, for instance ``python -c`` with this file imported; read the diff."""

RESNET = {"type": "TIMMBackbone", "model_name": "resnet18", "features_only": True, "out_indices": [1, 2, 3, 4]}
MODEL = network("deeplabv3plus", Backbone(RESNET, (64, 128, 256, 512), None), 3, 480, class_weights=[0.7, 2.5, 1.0])
TRAIN = SplitFiles(Path("work/retrain/train.txt"), Path("VOC2012/JPEGImages"), Path("work/masks"))
VAL = SplitFiles(Path("work/retrain/val.txt"), Path("my photos"), Path("VOC2012/SegmentationClass"), ".PNG")
OPTIONS = RetrainOptions(schedule="40k", validate_every=4000, seed=3)
CLASSES, PALETTE = ("background", "cat", "it's a dog"), ((0, 0, 0), (128, 0, 0), (0, 128, 0))


def sections(val: SplitFiles | None = VAL, **changes: Any) -> dict[str, Any]:
    options = OPTIONS.model_copy(update=changes)
    return config(MODEL, options, 480, CLASSES, PALETTE, TRAIN, val, 8, 2)


def text() -> str:
    return config_text(sections(), "Written by ssr retrain.\n\nTwo lines of a title.")


def test_the_file_is_as_it_was() -> None:
    assert text() == GOLDEN.read_text(encoding="utf-8")


def plain(value: Any, names: dict[str, Any]) -> Any:
    """With pipelines in the place of their names."""
    if isinstance(value, dict):
        return {key: names[one] if key == "pipeline" else plain(one, names) for key, one in value.items()}
    return type(value)(plain(one, names) for one in value) if isinstance(value, list | tuple) else value


@pytest.mark.parametrize("val", [VAL, None])
def test_mmengine_reads_the_same_values(tmp_path: Path, val: SplitFiles | None) -> None:
    pytest.importorskip("mmengine")
    from mmengine.config import Config

    written = sections(val)
    path = tmp_path / "config.py"
    path.write_text(config_text(written, "A title"), encoding="utf-8")
    assert Config.fromfile(path).to_dict() == plain(written, written)


@pytest.mark.parametrize("val", [VAL, None])
def test_validation_only_with_a_split(val: SplitFiles | None) -> None:
    found = sections(val)
    named = {name for name in found if name.startswith(("val_", "test_"))} - {"test_pipeline"}
    assert named == (
        {f"{part}_{what}" for part in ("val", "test") for what in ("dataloader", "evaluator", "cfg")} if val else set()
    )
    assert ("SegmentationClass" in config_text(found, "")) == (val is not None)


@pytest.mark.parametrize("warmup", [0, 1, 50, 1500, 10**6])
@pytest.mark.parametrize("schedule", ["1", "9", "10", "19", "500", "20k", "160k"])
def test_warm_up_is_a_tenth_at_most(schedule: str, warmup: int) -> None:
    steps = OPTIONS.model_copy(update={"schedule": schedule}).iterations
    *rise, fall = sections(schedule=schedule, warmup=warmup)["param_scheduler"]
    end = rise[0]["end"] if rise else 0
    wanted = min(warmup, steps // 10)
    assert end == (wanted if wanted > 1 else 0) <= steps / 10  # of one step, the learning rate would stay at its start
    assert [one["begin"] for one in rise] == [0] * (end > 0)  # none of no steps
    assert (fall["begin"], fall["end"]) == (end, steps)


@pytest.mark.parametrize(
    ("changes", "interval", "save"),
    [
        ({"schedule": "500", "validate_every": 0}, 500, 500),
        ({"schedule": "500", "validate_every": 100}, 100, 500),
        ({"schedule": "2k", "validate_every": 0, "save_every": 300}, 2000, 300),
    ],
)
def test_schedule(changes: dict[str, Any], interval: int, save: int) -> None:
    found = sections(**changes)
    assert found["train_cfg"]["val_interval"] == interval
    assert found["default_hooks"]["checkpoint"]["interval"] == save
    assert found["train_cfg"]["max_iters"] == found["param_scheduler"][-1]["end"]


def test_learning_rates() -> None:
    wrapper = sections(learning_rate=1e-3, backbone_learning_rate=2.5e-4)["optim_wrapper"]
    assert wrapper["optimizer"]["lr"] == 2.5e-4
    for part in ("neck", "decode_head", "auxiliary_head"):
        assert wrapper["paramwise_cfg"]["custom_keys"][part]["lr_mult"] == pytest.approx(4)
    assert sections(amp=True)["optim_wrapper"] == {
        **sections()["optim_wrapper"],
        "type": "AmpOptimWrapper",
        "dtype": "bfloat16",
    }


NAMES = st.text("abcxyz_", min_size=1, max_size=8) | st.sampled_from(keyword.kwlist) | st.text(max_size=4)
PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=30)
VALUES = st.recursive(
    PLAIN,
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(NAMES | st.integers(), inner, max_size=4)
    ),
    max_leaves=25,
)


class Calls(ast.NodeTransformer):
    """``dict(a=1)`` as ``{"a": 1}``, which `ast.literal_eval` takes."""

    def visit_Call(self, node: ast.Call) -> ast.Dict:
        assert isinstance(node.func, ast.Name)
        assert node.func.id == "dict"
        self.generic_visit(node)
        return ast.Dict([ast.Constant(one.arg) for one in node.keywords], [one.value for one in node.keywords])


@given(VALUES, st.integers(0, 40))
@settings(deadline=None, max_examples=300)
def test_source_is_the_value(value: Any, used: int) -> None:
    source = _source(value, used)
    found = ast.literal_eval(Calls().visit(ast.parse(source, mode="eval")))
    assert found == value
    assert repr(found) == repr(value)  # 1 is not True nor 1.0, a tuple not a list
