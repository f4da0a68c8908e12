"""Label maps that exports get wrong, if they get any wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipelines.datasets.classes import palette
from pipelines.options.export import ExportOptions
from pipelines.options.sources import ClipOptions, DatasetOptions, DinoOptions, RunOptions
from pipelines.stages import export
from pipelines.stores.mask_store import write_mask
from pipelines.workdir.workspace import Workspace

NAMES = ("Straßenschild", "犬 と 猫", "fire hydrant", 'a "b" <c> & d', *(f"class {n}" for n in range(5, 81)))


def label_maps() -> dict[str, NDArray[np.uint8]]:
    """Label maps by image id; sizes differ, and 255 is in some."""
    ring = np.zeros((20, 30), np.uint8)
    ring[2:18, 3:25] = 1
    ring[5:9, 6:12] = 0  # two holes, one with an island of another class
    ring[11:16, 14:22] = 0
    ring[13, 17] = 2
    parts = np.zeros((16, 17), np.uint8)
    parts[1:4, 1:5] = parts[8:12, 9:16] = 3
    parts[4, 5] = 3  # touches at a corner
    parts[14, 2] = 4  # one pixel
    parts[0, 0] = 255
    many = np.zeros((40, 45), np.uint8)
    many[2:34, 3:43] = np.arange(1, 81, dtype=np.uint8).reshape(8, 10).repeat(4, axis=0).repeat(4, axis=1)
    many[36:, :7] = 255
    noise = np.random.default_rng(0).integers(0, 4, (13, 11)).astype(np.uint8)
    return {
        "ring": ring,
        "parts and one pixel": parts,
        "whole": np.full((8, 9), 80, np.uint8),
        "nothing": np.zeros((5, 7), np.uint8),
        "naïve 図.v2": noise,
        "many": many,
    }


@pytest.fixture(scope="session")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A folder with these images, and a workspace whose pseudo-masks they are. Shared: do not change it."""
    root = tmp_path_factory.mktemp("odd")
    maps = label_maps()
    (root / "images").mkdir()
    for image_id, mask in maps.items():
        Image.fromarray(palette()[mask]).save(root / f"images/{image_id}.png")
        write_mask(root / f"work/masks/{image_id}.png", mask, palette())
    (root / "labels.csv").write_text("image,labels\n" + "".join(f"{image_id},class 5\n" for image_id in maps))
    names = "".join(f"[[classes]]\nname = {name!r}\nprompt = 'thing {n}'\n" for n, name in enumerate(NAMES))
    (root / "classes.toml").write_text(names, encoding="utf-8")
    dataset = DatasetOptions(kind="folder", root=root, classes=root / "classes.toml")
    workspace = Workspace(root / "work", dataset, ClipOptions(), DinoOptions(), RunOptions())
    order = [sample.image_id for sample in workspace.dataset.samples]
    return SimpleNamespace(root=root, maps=maps, workspace=workspace, order=order)


@pytest.fixture
def exported(odd: Any, tmp_path: Path) -> Callable[..., Path]:
    """Write an export of `odd` with options; returns its folder."""

    def write(form: str, **options: Any) -> Path:
        done = export.run(odd.workspace, ExportOptions(format=form, output=tmp_path / "export", **options))
        assert (done.done, done.failed) == (len(odd.maps), 0)
        assert any("255" in words for words in done.said)
        return done.folder

    return write
