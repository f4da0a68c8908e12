"""Commands that are printed run as they are printed, and `make` quotes its variables."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest


@pytest.mark.parametrize("place", ["my photos & co", "it's #1; $(x)", "v[2] [bold]"])
def test_printed_commands_run_as_they_are_printed(ssr, tiny_folder, tmp_path, place):
    """From `doctor` to the ablation, only by what is printed: `next:` lines, and commands in errors."""
    root = Path(shutil.copytree(tiny_folder.root, tmp_path / place / "photos"))
    config = tiny_folder.config.read_text().replace('root = "."\n', "")
    (tmp_path / place / "models.toml").write_text(config)
    made = ["folder", "--root", root, "--config", tmp_path / place / "models.toml", "--work", tmp_path / place / "runs"]
    said = ssr("doctor", *made).out
    commands = []
    for _ in range(6):
        command = next(line.removeprefix("next: ") for line in said.splitlines() if line.startswith("next: "))
        commands.append(shlex.split(command)[1])
        said = ssr(*shlex.split(command)[1:]).out
        if commands[-1] == "report":
            assert f"report: {(tmp_path / place / 'runs/report.html').absolute()}\n" in said
    assert commands == ["superpixels", "cams", "refine", "eval", "report", "ablation"]
    said = ssr("show", *made, "--count", 1).out
    assert f"contact sheet {tmp_path / place / 'runs/show/contact_sheet.png'}, page " in said
    said = ssr("review", *made).out
    (tmp_path / "review.json").write_text("[]")
    command = said.rsplit("next: ", 1)[1].replace("review.json", str(tmp_path / "review.json"))
    assert "0 bad" in ssr(*shlex.split(command)[1:]).out
    shutil.rmtree(tmp_path / place / "runs")
    failed = ssr("refine", *made, code=1).err
    for expected in ("cams", "superpixels"):
        command = shlex.split(failed[failed.index("`") + 1 : failed.rindex("`")])
        assert command[1] == expected
        failed = ssr(*command[1:], code=None).err


def test_make_quotes_its_variables(tmp_path):
    """What `make all` runs: each variable is one word, whatever is in it."""
    root, work = "/data/my photos & co's", "runs/a  b"
    given = ["VENV=.venv", "DATASET=folder", f"ROOT={root}", f"WORK={work}", "CLIP=a b.pt", "VAL=v w"]
    words = ["make", "-n", "-o", "setup", "all", *given]
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    lines = [line for line in done.stdout.splitlines() if line.startswith("set -- ")]
    assert len(lines) >= 7
    for line in lines:
        script = line.split("; echo;")[0] + "; printf '%s\\0' \"$@\""
        found = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout.split("\0")
        assert found[found.index("--root") + 1] == root
        assert found[found.index("--work") + 1] == work
        shown = shlex.split(subprocess.run(["sh", "-c", line.split("; .venv")[0]], capture_output=True, text=True).stdout[1:])
        assert shown[:2] == [">", "ssr"]
        assert shown[2:] == found[:-1]
