"""The parts of docs/extending.md, each in a file of its own, through the command that the page gives for it."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from math import prod
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from pipelines.datasets import KINDS
from pipelines.encoders.towers import TOWERS
from pipelines.exports import EXPORTS
from pipelines.method.affinity import AFFINITIES
from pipelines.method.affinity_filters import AFFINITY_FILTERS
from pipelines.method.boundary import BOUNDARY
from pipelines.method.column_masks import COLUMN_MASKS
from pipelines.method.readouts import READOUTS
from pipelines.method.tagging import TAGGERS
from pipelines.training.losses import LOSSES
from tests.fixtures.commands import Ssr
from tests.fixtures.maps import maps

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/extending.md").read_text(encoding="utf-8")
TABLES = (READOUTS, TAGGERS, AFFINITIES, AFFINITY_FILTERS, COLUMN_MASKS, BOUNDARY, LOSSES, KINDS, TOWERS, EXPORTS)
CAMS, TRAIN, DATASET = ["A read-out"], ["A loss"], ["A dataset kind"]
REFINE = ["An affinity", "An affinity filter", "A column mask", "A backbone"]
BOUNDARIES, FORMATS, TAGGING = ["A boundary refinement"], ["An export format"], ["A tagger"]


@pytest.fixture
def part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """Write the example below a heading to its file; gives the words of its command. The tables are as before afterwards."""
    section = re.split(r"^## ", PAGE.split(f"\n## {request.param}\n")[1], flags=re.MULTILINE)[0]
    (code,) = re.findall(r"^```python\n(.*?)^```", section, flags=re.DOTALL | re.MULTILINE)
    (command,) = re.findall(r"^```bash\nSSR_PLUGINS=(\w+) ssr (.*)\n```", section, flags=re.MULTILINE)
    module, words = command
    assert code.startswith(f'"""{module}.py: ')
    (tmp_path / f"{module}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("SSR_PLUGINS", module)
    monkeypatch.chdir(tmp_path)
    with ExitStack() as stack:
        for table in TABLES:
            stack.enter_context(patch.dict(table))
        yield shlex.split(words)
    sys.modules.pop(module, None)


def assert_differs(made: dict[str, np.ndarray], shipped: dict[str, np.ndarray]) -> None:
    assert made.keys() == shipped.keys()
    assert all(np.isfinite(made[image_id]).all() for image_id in made)
    assert not np.allclose(made["b_trio"], shipped["b_trio"], atol=1e-2)


@pytest.fixture
def work(finished: dict[str, Path], tmp_path: Path) -> Path:
    """Superpixels and CAMs."""
    shutil.copytree(finished["ssr"], tmp_path / "work", ignore=shutil.ignore_patterns("masks*", "refined*"))
    return tmp_path / "work"


@pytest.mark.parametrize("part", CAMS, indirect=True)
def test_readout(part, work: Path, finished: dict[str, Path], ssr: Ssr) -> None:
    ssr(*part, "--work", work, "--force")
    assert_differs(maps(work / "cams.h5"), maps(finished["ssr"] / "cams.h5"))


@pytest.mark.parametrize("part", TAGGING, indirect=True)
def test_tagger(part, work: Path, ssr: Ssr) -> None:
    assert "threshold 0.200 (default)" in ssr(*part, "--work", work).out
    scores = maps(work / "tag_scores.h5")
    assert len(scores) == 6
    assert {round(float(row.sum()), 4) for row in scores.values()} == {1.0}


@pytest.mark.parametrize("part", REFINE, indirect=True)
def test_refinement(part, work: Path, finished: dict[str, Path], ssr: Ssr, tmp_path: Path) -> None:
    sizes = {"patches.weight": (12, 3, 8, 8), "blocks.0.weight": (12, 12), "blocks.1.weight": (12, 12)}
    sizes |= {f"{name}.bias": (12,) for name in ("patches", "blocks.0", "blocks.1")}
    wave = {name: torch.linspace(-1, 1, prod(size)).sin().view(size) for name, size in sizes.items()}
    save_file(wave, tmp_path / "colour_net.safetensors")
    ssr(*part, "--work", work)
    assert_differs(maps(work / "refined.h5"), maps(finished["ssr"] / "refined.h5"))
    assert len(list((work / "masks").glob("*.png"))) == 6


@pytest.mark.parametrize("part", BOUNDARIES, indirect=True)
def test_boundary_refinement(part, finished: dict[str, Path], ssr: Ssr, tmp_path: Path) -> None:
    shutil.copytree(finished["ssr"], tmp_path / "work")
    before = {path.name: path.read_bytes() for path in (tmp_path / "work/masks").glob("*.png")}
    ssr(*part, "--work", tmp_path / "work", "--force")
    after = {path.name: path.read_bytes() for path in (tmp_path / "work/masks").glob("*.png")}
    assert after.keys() == before.keys()
    assert after != before
    assert (tmp_path / "work/refined.h5").read_bytes() == (finished["ssr"] / "refined.h5").read_bytes()


@pytest.mark.parametrize("part", TRAIN, indirect=True)
def test_loss(part, work: Path, ssr: Ssr) -> None:
    small = ("--iterations", 3, "--batch", 2, "--crop", 64, "--hidden", 16, "--decoder-heads", 2, "--par-iterations", 0)
    models = []
    for loss in (part[1:], []):
        ran = ssr("train", *loss, *small, "--work", work, "--force")
        (line,) = [json.loads(line) for line in (work / "train/curves.jsonl").read_text().splitlines()]
        assert (line.get("entropy", 0) > 0, ", entropy " in ran.err) == (bool(loss), bool(loss))
        assert json.loads((work / "model.json").read_text())["settings"].get("losses") == ({"entropy": 0.1} if loss else None)
        models.append((work / "model.safetensors").read_bytes())
    assert models[0] != models[1]
    assert "no loss 'entrpy'" in ssr("train", "--loss", "entrpy=1", *small, "--work", work, code=2).err


@pytest.mark.parametrize("part", DATASET, indirect=True)
def test_dataset_kind(part, ssr_process: Ssr, tmp_path: Path) -> None:
    """In processes of their own, with workers."""
    for name in ("red/1", "blue/1", "blue/2"):
        (tmp_path / f"photos/{name}.png").parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((24, 16), 90).convert("RGB").save(tmp_path / f"photos/{name}.png")
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}"}
    words = [word.replace("/data/by-class", "photos") for word in part]
    ssr_process(*words, "--workers", 2, "--work", "kind", env=environment)
    made = json.loads((tmp_path / "kind/superpixels.json").read_text())
    assert (made["dataset"]["kind"], made["counts"]["done"]) == ("by-class", 3)
    assert "3 panels" in ssr_process("show", "by-class", "--work", "kind", env=environment).out


@pytest.mark.parametrize("part", FORMATS, indirect=True)
def test_export_format(part, finished: dict[str, Path], ssr: Ssr, tmp_path: Path) -> None:
    ssr(*part, "--work", finished["ssr"], "--output", tmp_path / "out")
    assert len(list((tmp_path / "out").glob("*.png"))) == 6
    assert (tmp_path / "out/names.txt").read_text().startswith("background\naeroplane\n")


def test_every_example_of_the_page_is_run() -> None:
    examples = [text.split("\n")[0] for text in PAGE.split("\n## ") if "\nSSR_PLUGINS=" in text]
    assert sorted(examples) == sorted([*CAMS, *TAGGING, *REFINE, *BOUNDARIES, *TRAIN, *DATASET, *FORMATS])
