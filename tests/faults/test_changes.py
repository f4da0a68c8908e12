"""Options, dataset or weights that changed between runs: refused with exit code 2 and the name of what changed, nothing lost;
``--force`` starts over and gives what a fresh run with the new ones gives. Changed labels of an image make that image anew.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from tests.fixtures.forks import Ended

from .contents import differing, digest, explain
from .harness import STAGES, either

ROW = "changed {}, then --force"
GOOD = "exit 2 names it, nothing lost; --force gives the bytes of a fresh run"


def refused(ended: Ended, name: str) -> None:
    assert ended.code == 2, ended
    assert ended.clear, ended
    assert name in ended.errors[0], ended


@pytest.mark.parametrize("stage", either([name for name, stage in STAGES.items() if stage.changed], "refine", "train"))
def test_changed_option(lab, table, tmp_path, stage):
    flags = STAGES[stage].changed
    work = lab.finished(stage, tmp_path / "work")
    refused(lab.run(stage, work, *flags), STAGES[stage].names)
    lost = lab.differences(stage, work)
    lab.passes(stage, work, *flags, "--force")
    fresh = lab.fresh(stage, tmp_path / "fresh")
    lab.passes(stage, fresh, *flags)
    found = differing(digest(fresh), digest(work))
    assert found == [], explain(fresh, work, found)
    assert lab.differences(stage, work) != [], "the option changes nothing: the test shows nothing"
    assert lost == []
    table.add(ROW.format("option"), stage, GOOD)


@pytest.fixture(scope="session")
def other_weights(models, tmp_path_factory) -> dict[str, Path]:
    """Weights that differ a little from those of the chain."""
    from safetensors.torch import load_file, save_file

    folder, found = tmp_path_factory.mktemp("weights"), {}
    for name, path in (("clip", models.visual), ("dino", models.dino)):
        tensors = load_file(path)
        first = next(key for key, value in tensors.items() if value.is_floating_point() and value.dim() > 1)
        tensors[first] = tensors[first] * 1.25
        found[name] = folder / f"{name}.safetensors"
        save_file(tensors, found[name])
    return found


@pytest.mark.parametrize(
    ("stage", "which"), either(product(("align", "refine"), ("clip", "dino")), ("align", "clip"), ("refine", "dino"))
)
def test_changed_weights(lab, table, tmp_path, other_weights, stage, which):
    flags = (f"--{which}-pretrained", str(other_weights[which]))
    work = lab.finished(stage, tmp_path / "work")
    refused(lab.run(stage, work, *flags), which)
    assert lab.differences(stage, work) == []
    lab.passes(stage, work, *flags, "--force")
    fresh = lab.fresh(stage, tmp_path / "fresh")
    lab.passes(stage, fresh, *flags)
    assert differing(digest(fresh), digest(work)) == []
    table.add(ROW.format(f"weights of {which}"), stage, GOOD)


@pytest.mark.parametrize("stage", ["cams", "train", "predict"])
def test_weights_that_heads_and_model_were_not_trained_with(lab, table, tmp_path, other_weights, stage):
    work = lab.finished(stage, tmp_path / "work")
    for force in ((), ("--force",)):  # without --force, settings are compared before heads are opened
        named = "CLIP" if force or stage == "predict" else "clip.weights"
        refused(lab.run(stage, work, "--clip-pretrained", str(other_weights["clip"]), *force), named)
        assert lab.differences(stage, work) == []
    table.add("changed weights of clip, heads or model of the old", stage, "exit 2 names it, nothing lost, --force or not", 2)


INPUTS = (
    ("superpixels", ("--segments", "9"), "cams", "superpixels"),
    ("align", ("--hidden", "6"), "train", "ckpt"),
    ("train", ("--seed", "3"), "predict", "model"),
    ("superpixels", ("--segments", "9"), "align", "superpixels"),
    ("superpixels", ("--segments", "9"), "refine", "superpixels"),
    ("superpixels", ("--segments", "9"), "train", "superpixels"),
    ("align", ("--hidden", "6"), "cams", "ckpt"),
    ("cams", ("--readout", "dense"), "refine", "cams"),
)


@pytest.mark.parametrize(("made", "flags", "stage", "name"), either(INPUTS, *INPUTS[:3]))
def test_changed_input(lab, table, tmp_path, made, flags, stage, name):
    work = lab.finished("eval", tmp_path / "work")
    lab.passes(made, work, *flags, "--force")
    before = digest(work)
    refused(lab.run(stage, work), name)
    assert differing(before, digest(work)) == []
    lab.passes(stage, work, "--force")
    table.add("input made anew with another option", stage, "exit 2 names it, nothing lost; --force starts over")


@pytest.mark.parametrize("stage", [name for name in STAGES if name not in ("predict", "eval")])  # these two change no memory
def test_changed_dataset(lab, table, tmp_path, stage):
    other = tmp_path / "other" / "VOC2012"
    shutil.copytree(lab.root, other)
    work = lab.finished(stage, tmp_path / "work")
    for force in ((), ("--force",)):
        refused(lab.run(stage, work, "--root", str(other), *force), "root")
        assert lab.differences(stage, work) == []
    table.add("changed dataset", stage, "exit 2 names it, nothing lost, --force or not", 2)


@pytest.mark.parametrize("stage", either(("cams", "refine"), "refine"))
def test_changed_labels_of_one_image(lab, table, tmp_path, stage):
    work, fresh = lab.finished("refine", tmp_path / "work"), lab.fresh("cams", tmp_path / "fresh")
    copy = replace(
        lab, root=tmp_path / "VOC2012", config=tmp_path / "copy.toml"
    )  # other tests use the dataset at the same time
    shutil.copytree(lab.root, copy.root)
    shutil.copy(lab.config, copy.config)
    for path in (copy.config, work / "work.json", fresh / "work.json"):
        path.write_text(path.read_text().replace(str(lab.root), str(copy.root)))
    xml = copy.root / "Annotations/photo_01.xml"
    assert "dog" in xml.read_text()
    xml.write_text(xml.read_text().replace("dog", "person"))
    for name in ("cams", "refine")[: 1 + (stage == "refine")]:
        ended = copy.passes(name, work)
        copy.passes(name, fresh)
    assert ", 19 already done" in ended.said
    stores = ("cams.h5", "refined.h5", "masks/")[: 3 if stage == "refine" else 1]
    found, wanted = ({k: v for k, v in digest(folder).items() if k.startswith(stores)} for folder in (work, fresh))
    assert found == wanted
    changed = [name for name in lab.differences("refine", work) if name.startswith("masks/")]
    assert changed == (["masks/photo_01.png"] if stage == "refine" else [])
    table.add("changed labels of one image", stage, "that image alone is made anew; the bytes of a fresh run")
