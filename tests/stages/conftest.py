"""Workspaces over the tiny VOC photos, without the command line."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pipelines.config import build_options, read_config, read_recipe
from pipelines.stages.workspace import Workspace

if TYPE_CHECKING:
    from pipelines.stages.counts import Counts
    from pipelines.stages.online_labels import OnlineLabels
    from pipelines.stages.train_inputs import TrainInputs, TrainSections


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


SMALL = {
    "crop": 64, "batch": 2, "iterations": 6, "save_every": 2, "warmup": 2, "hidden": 16, "decoder_layers": 1,
    "decoder_heads": 2, "par_iterations": 1, "par_dilations": (1, 2), "learning_rate": 1e-2,
}  # fmt: skip
SETS: dict[str, tuple[str, dict[str, Any]]] = {
    # recipe, changes to [train]
    "ssr": ("ssr", {"ckpt": Path("auto")}),
    "joint": ("ssr", {"ckpt": Path("auto"), "train_heads": True, "prototype_refresh": 4, "accumulate": 2}),
    "weclip": ("weclip", {"clip_layers": 3, "filter_from": 3, "filter_blocks": 2}),
    "masks": ("ssr", {"supervision": "masks"}),
}


@pytest.fixture(scope="session")
def train_sections() -> Callable[..., TrainSections]:
    """Options of a small training: one of `SETS` by name, with changes to [train]."""
    from pipelines.options.align import AlignOptions
    from pipelines.options.stages import CamsOptions, RefineOptions
    from pipelines.options.train import TrainOptions
    from pipelines.stages.train_inputs import TrainSections

    def make(name: str, **changed: Any) -> TrainSections:
        recipe, own = SETS[name]
        found = read_recipe(recipe)
        return TrainSections(
            TrainOptions(**{**found.get("train", {}), **SMALL, **own, **changed}),
            AlignOptions(),
            CamsOptions(**found["cams"]),
            RefineOptions(**found["refine"]),
        )

    return make


@pytest.fixture(scope="session")
def run_train(train_sections: Callable[..., TrainSections]) -> Callable[..., Counts]:
    """Run a small training in a workspace."""
    from pipelines.stages import train

    return lambda workspace, name="weclip", **changed: train.run(workspace, train_sections(name, **changed))


@pytest.fixture(scope="session")
def with_heads(
    workspace_in: Callable[..., Workspace], finished: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A work directory with superpixels and alignment heads. Shared: copy before changing."""
    from pipelines.options.align import AlignOptions
    from pipelines.options.stages import CamsOptions, RefineOptions
    from pipelines.stages import align

    work = tmp_path_factory.mktemp("with_heads") / "work"
    work.mkdir()
    for name in ("superpixels.h5", "superpixels.json"):
        shutil.copy(finished["ssr"] / name, work / name)
    options = AlignOptions(cam="initial", hidden=8, tokens=16, batch=2, iterations=6, refresh=3, learning_rate=1e-2)
    align.run(workspace_in(work), options, CamsOptions(), RefineOptions())
    shutil.rmtree(work / "align")
    return work


@pytest.fixture
def new(with_heads: Path, workspace_in: Callable[..., Workspace], tmp_path: Path) -> Callable[..., Workspace]:
    """A copy of `with_heads` by name, as a workspace with options of its own."""

    def make(name: str = "new", **options: Any) -> Workspace:
        if not (tmp_path / name).exists():
            shutil.copytree(with_heads, tmp_path / name)
        return workspace_in(tmp_path / name, **options)

    return make


@pytest.fixture
def online() -> Iterator[Callable[..., tuple[TrainInputs, OnlineLabels]]]:
    """Make what labels crops, from a workspace, (cams, refine) and changes to [train]; by default whole photos of 80 x 80."""
    import torch

    from pipelines.options.align import AlignOptions
    from pipelines.options.train import TrainOptions
    from pipelines.stages.train_inputs import TrainInputs, TrainSections
    from pipelines.training.processes import Processes

    plain = {"crop": 80, "batch": 9, "min_scale": 1, "max_scale": 1, "flip": False, "par_iterations": 0, "hidden": 8}
    with ExitStack() as stack:

        def make(workspace: Workspace, options: tuple[Any, Any], **train: Any) -> tuple[TrainInputs, OnlineLabels]:
            sections = TrainSections(TrainOptions(**{**plain, "decoder_heads": 2, **train}), AlignOptions(), *options)
            inputs = TrainInputs(workspace, sections.checked(workspace), torch.device("cpu"), Processes(), stack)
            assert inputs.labels is not None
            return inputs, inputs.labels

        yield make
