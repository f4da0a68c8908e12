"""The documentation says what the program does: commands run as written, references are current, links lead somewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


def test_option_reference_is_current() -> None:
    from ssr_cli.reference import reference

    written = (ROOT / "docs" / "options.md").read_text(encoding="utf-8")
    assert written == reference() + "\n", "python -m ssr_cli.reference > docs/options.md"


def readme_commands() -> list[str]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    return [line.split("#")[0].strip() for block in blocks for line in block.splitlines() if line.startswith("ssr ")]


def test_readme_tree_has_every_room() -> None:
    (tree,) = re.findall(r"```text\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    named = {
        ("pipelines/" if line.startswith(" ") else "") + name
        for line in tree.splitlines()
        for name in re.findall(r"\S+(?:/|\.py)(?= |$)", line[:25])
    }
    rooms = {f"pipelines/{path.parent.name}/" for path in ROOT.glob("pipelines/*/__init__.py")}
    assert rooms <= named
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_readme_commands_run_as_written(ssr: Any, tiny_voc: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    short = "[train]\niterations = 2\ncrop = 64\nhidden = 16\ndecoder_heads = 2\n"
    short += '[retrain]\nmodel = "segformer"\nbackbone = "dino"\nschedule = "2"\ncrop = 64\nbatch = 2\nchannels = 16\n'
    (tmp_path / "my.toml").write_text(tiny_voc.config.read_text(encoding="utf-8") + short, encoding="utf-8")
    commands = readme_commands()
    assert len(commands) >= 4
    for command in commands:
        ssr(*shlex.split(command.replace("/data/other-photos", str(tiny_voc.root / "JPEGImages")))[1:], code=0)
    assert list((tmp_path / "runs" / "voc" / "masks").glob("*.png"))


def test_makefile_chain_names_real_commands() -> None:
    from ssr_cli.app import COMMANDS

    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    steps = re.findall(r"\(call step,(\w+)", text.split("\nall:")[1])
    assert steps[:5] == ["doctor", "superpixels", "align", "cams", "refine"]
    assert set(steps) <= set(COMMANDS)
