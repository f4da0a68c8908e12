"""Workspaces over the tiny VOC photos, without the command line."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.config import build_options, read_config
from pipelines.stages.workspace import Workspace


@pytest.fixture(scope="session")
def workspace_in(tiny_voc) -> Callable[..., Workspace]:
    """A workspace in a folder; ``root`` for other photos, ``force``, the rest are options of [run]."""
    values, _ = read_config(tiny_voc.config)

    def make(work: Path, root: Path = tiny_voc.root, force: bool = False, split: str = "train", **run: object) -> Workspace:
        dataset = build_options("dataset", values["dataset"], {"root": root, "split": split})
        others = (build_options(section, values[section]) for section in ("clip", "dino"))
        return Workspace(work, dataset, *others, build_options("run", values["run"], run), "ssr", force)

    return make


@pytest.fixture
def workspace(workspace_in: Callable[..., Workspace], finished: dict[str, Path], tmp_path: Path) -> Workspace:
    """Superpixels and CAMs are there, refinement is not."""
    workspace = workspace_in(tmp_path / "work")
    workspace.work.mkdir()
    for name in ("superpixels.h5", "superpixels.json", "cams.h5", "cams.json"):
        shutil.copy(finished["ssr"] / name, workspace.work / name)
    return workspace


@pytest.fixture(scope="session")
def model(write_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A segmentation model of VOC's classes. Shared by all tests: copy before changing."""
    return write_model(tmp_path_factory.mktemp("model") / "model.safetensors")


@pytest.fixture
def work_with_model(workspace_in: Callable[..., Workspace], model: Path, tmp_path: Path) -> Workspace:
    """A work directory with a model and nothing else."""
    workspace = workspace_in(tmp_path / "work")
    workspace.work.mkdir()
    shutil.copy(model, workspace.model)
    return workspace
