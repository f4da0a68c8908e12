"""The bash blocks of the documentation run as written, in a real shell, on a few drawn pictures.

What is exchanged: a root that stands for the reader's own data becomes ``--config my.toml``.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fixtures.forks import Warm
from tests.fixtures.models import TinyModels

ROOT = Path(__file__).parents[1]
OWN_DATA = "voc --root /data/VOCdevkit/VOC2012"


def blocks(page: str, heading: str) -> list[str]:
    """Bash blocks below a heading, up to the next one; without a heading, those at the head of the page."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    section = re.split(r"^## ", text.split(f"\n## {heading}\n")[1] if heading else text, flags=re.MULTILINE)[0]
    return re.findall(r"^```bash\n(.*?)^```", section, flags=re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory, warm: Warm, models: TinyModels):
    """A shell in a folder with ``my.toml``, of tiny models; its ``ssr`` is this one, in forks of a warm process."""
    pytest.importorskip("pydensecrf", reason="the commands use the CRF")
    folder = tmp_path_factory.mktemp("reader")
    environment = os.environ | {"PATH": f"{warm.ssr.parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}

    def run(script: str) -> str:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    short = r"/^work/d; s/^iterations.*/iterations = 2/; s/^schedule.*/schedule = \"2\"/; s/^\[align\]/&\niterations = 2/"
    short += "; s/^cache_views.*/cache_views = 1/"
    run(f"ssr sample --work . --train 4 --val 1 && sed '{short}' sample.toml > my.toml")
    models.put_into(folder / "my.toml")
    return run


def test_a_first_run_and_going_on(shell) -> None:
    (first,) = [block for block in blocks("getting-started.md", "PASCAL VOC") if "ssr " in block]
    assert OWN_DATA in first
    lines = [line for line in first.replace(OWN_DATA, "voc --config my.toml").splitlines() if not line.startswith("source")]
    said = shell("\n".join(lines))
    assert "+ superpixels (SGC)" in said
    assert "runs/voc/report.html" in said
    (on,) = blocks("getting-started.md", "Going on, starting over")
    for line in on.splitlines():
        refused = "# refused" in line
        said = shell(f"! {line}" if refused else line)
        assert ("was made with other options" in said) == refused, line


@pytest.mark.parametrize("heading", ["", "The built-in ablation", "An ablation of any option"])
def test_recipes_and_ablations(shell, heading: str) -> None:
    found = blocks("recipes.md", heading)
    assert found
    said = "".join(shell(block) for block in found)
    assert "mIoU" in said


MEND = """
import zipfile
with zipfile.ZipFile("runs/voc/exports/cvat-train/masks.zip") as made, zipfile.ZipFile("corrected.zip", "w") as mended:
    for name in made.namelist():
        if not name.endswith("_0001.png"):
            mended.writestr(name, made.read(name))
"""


def test_from_photos_to_cvat_and_back(shell) -> None:
    """The file that CVAT would export is ours, but for an image that nobody looked at."""
    pytest.importorskip("mmseg", reason="the commands retrain")
    (block,) = blocks("export.md", "")
    shell("rm -rf runs")  # the commands name no work directory: there is but one
    for line in block.replace(OWN_DATA, "voc --config my.toml").splitlines():
        if line.startswith("ssr import"):
            shell(f"{sys.executable} - <<'END'\n{MEND}\nEND")
        said = shell(line)
        if line.startswith("ssr retrain"):
            assert "3 corrected masks and 1 pseudo-masks" in said
    assert "4 label maps in" in said
