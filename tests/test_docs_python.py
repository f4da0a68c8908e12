"""The Python of the documentation runs as written, on a small drawn set."""

from __future__ import annotations

import doctest
import json
import re
from pathlib import Path
from typing import Any

import pytest

import pipelines.api.labeler
import pipelines.api.model
from tests.fixtures.commands import Ssr
from tests.fixtures.models import TinyModels
from tests.fixtures.shared import Once

ROOT = Path(__file__).parents[1]


def python_of(page: str) -> str:
    """The Python blocks of a page as one file; its line numbers are those of the page."""
    lines, inside = [], False
    for line in (ROOT / page).read_text(encoding="utf-8").splitlines():
        if line.startswith("```"):
            inside = line == "```python"
            line = ""
        lines.append(line if inside else "")
    assert any(lines), f"{page} has no Python"
    return "\n".join(lines)


@pytest.fixture(scope="session")
def drawn(built_once: Once, ssr: Ssr, models: TinyModels) -> Path:
    """A folder with ``runs/sample``: a few drawn photos, heads and a model after a few steps."""

    def build(folder: Path) -> None:
        work = folder / "runs/sample"
        ssr("sample", "--work", work, "--train", 4, "--val", 1)
        ssr("superpixels", "--config", models.put_into(work / "sample.toml"))
        ssr("align", "--work", work, "--epochs", 1)
        ssr("train", "--work", work, "--iterations", 2, "--cache-views", 1)

    return built_once("drawn", build)


@pytest.mark.parametrize("page", ["README.md", "docs/python.md"])
def test_python_blocks_run_as_written(page: str, drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs").symlink_to(drawn / "runs")
    monkeypatch.chdir(tmp_path)
    exec(compile(python_of(page), page, "exec"), {"__name__": page})
    assert (tmp_path / "mask.png").is_file()


def test_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cell by cell, without Jupyter; it is committed without outputs."""
    import matplotlib.pyplot as plt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    plt.switch_backend("agg")
    cells = json.loads((ROOT / "docs/notebooks/first-masks.ipynb").read_text(encoding="utf-8"))["cells"]
    names: dict[str, Any] = {}
    for number, cell in enumerate(cells):
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)
            exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
    assert [axes.get_title() for axes in plt.gcf().axes] == ["image", "CAM of apple", "refined CAM", "pseudo-mask"]
    assert len(plt.get_fignums()) == 2
    plt.close("all")


@pytest.mark.parametrize("module", [pipelines.api.labeler, pipelines.api.model], ids=lambda module: module.__name__)
def test_examples_in_docstrings(module, drawn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(drawn)
    ran = doctest.testmod(module)
    assert (ran.failed, ran.attempted > 0) == (0, True)


def test_comments_of_the_page_are_true(ssr: Ssr, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``result.NAME  # (shape) dtype`` and the value of ``result.classes``, with the embedded models."""
    monkeypatch.chdir(tmp_path)
    ssr("sample", "--train", 1, "--val", 1)
    result = pipelines.PseudoLabeler.from_config("runs/sample/sample.toml")(
        "runs/sample/dataset/JPEGImages/train_0000.jpg", ["cup", "apple"]
    )
    page = (ROOT / "docs/python.md").read_text(encoding="utf-8")
    said = re.findall(r"^result\.(\w+) +# \(([\d, ]+)\) (\w+)", page, flags=re.MULTILINE)
    assert len(said) == 3
    for name, shape, dtype in said:
        array = getattr(result, name)
        assert (", ".join(map(str, array.shape)), str(array.dtype)) == (shape, dtype), name
    assert f"# {result.classes!r}" in page
