"""The work directory: settings that changed, memory, and what comes next."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipelines.config import build_options
from pipelines.errors import SsrError, UsageError
from pipelines.stages.status import status
from pipelines.stores.array_store import ArrayWriter
from pipelines.stores.manifest import Manifest
from pipelines.workdir.memory import recall, remember
from pipelines.workdir.settings import input_digest


def test_memory_comes_back(workspace_in, tmp_path, tiny_voc):
    workspace = workspace_in(tmp_path)
    remember(workspace)
    memory = recall(tmp_path)
    assert build_options("dataset", memory["dataset"]) == workspace.dataset_options
    assert build_options("clip", memory["clip"]) == workspace.clip


def test_another_split_of_the_same_photos_may_share_a_directory(workspace_in, tmp_path):
    remember(workspace_in(tmp_path))
    remember(workspace_in(tmp_path, split="val"))
    assert recall(tmp_path)["dataset"]["split"] == "val"


def test_other_photos_may_not(workspace_in, tmp_path):
    remember(workspace_in(tmp_path))
    before = recall(tmp_path)
    with pytest.raises(UsageError, match="another dataset"):
        remember(workspace_in(tmp_path, root=tmp_path))
    assert recall(tmp_path) == before


def test_missing_input_names_its_command(workspace_in, tmp_path):
    workspace = workspace_in(tmp_path)
    with pytest.raises(SsrError, match=r"no cams in .*`ssr cams --work "):
        input_digest(workspace.cams, "ssr cams")


@pytest.mark.parametrize(
    ("begun", "complete", "following"),
    [
        ([], [], "ssr superpixels"),
        (["superpixels"], [], "ssr superpixels"),
        (["superpixels"], ["superpixels"], "ssr cams"),
        (["cams"], ["cams"], "ssr refine"),  # a recipe without superpixels
        (["cams"], [], "ssr cams"),
        (["superpixels", "cams"], ["cams"], "ssr superpixels"),  # begun and broken off
        (["cams", "refined", "masks"], ["cams", "refined"], "ssr refine"),
        (["cams", "refined", "masks"], ["cams", "refined", "masks"], "ssr eval"),
    ],
)
def test_next_command(workspace_in, tmp_path, begun, complete, following):
    for name in begun:
        manifest = Manifest(name, {}, {"images": 6}, complete=name in complete)
        manifest.write(tmp_path / f"{name}.json")
        if name != "masks":
            with ArrayWriter(tmp_path / f"{name}.h5"):
                pass
    found = status(tmp_path)
    assert found.next_command == f"{following} --work {tmp_path}"
    assert [output.complete for output in found.outputs] == [
        name in complete for name in ("superpixels", "cams", "refined", "masks")
    ]


def test_the_hint_mends_a_replaced_photo(ssr, tiny_voc, tmp_path):
    """A photo is replaced after its superpixels were made: `ssr cams` names `ssr superpixels`, which makes its own anew."""
    root = Path(shutil.copytree(tiny_voc.root, tmp_path / "voc"))
    made = ("--config", tiny_voc.config, "--root", root, "--work", tmp_path / "w")
    ssr("superpixels", *made)
    shutil.copy(root / "JPEGImages/c_bird.jpg", root / "JPEGImages/a_cat.jpg")
    assert "run `ssr superpixels`" in ssr("cams", *made, code=1).err
    ssr("superpixels", *made)
    ssr("cams", *made)
