"""The dataset of the fault tests, their forking process, and the table at the end."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from .harness import FULL, IMAGES, ROOT, STAGES, TOML, Lab, Table

TABLE = Table()

if not hasattr(os, "fork"):
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def lab(built_once, make_voc, models, tiny_voc, forks) -> Lab:
    """A drawn dataset, an undisturbed chain of stages over it, and a process that forks runs."""
    if "retrain" in STAGES:
        forks.ask(do="mmsegmentation")
    names = ("cat", "dog", "bird")
    photos = {
        f"photo_{n:02d}": ((48, 32) if n % 3 else (32, 48), names[: 1 + n % 3] if n % 5 else ("car",)) for n in range(IMAGES)
    }

    def of(folder: Path) -> Lab:
        return Lab(folder, folder / "faults.toml", folder / "VOC2012", forks)

    def build(folder: Path) -> None:
        lab = of(folder)
        make_voc(lab.root, photos)
        tiny_voc.write_config(lab.config, models, TOML)
        lab.config.write_text(lab.config.read_text().replace(str(tiny_voc.root), str(lab.root)))
        lab.run_chain()

    return of(built_once("faults", build))


@pytest.fixture(scope="session")
def table() -> Table:
    """Counts outcomes."""
    return TABLE


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The table, in the full form."""
    if FULL and TABLE.rows:
        lines = list(TABLE.lines())
        (ROOT / "build").mkdir(exist_ok=True)
        (ROOT / "build/faults.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
        terminalreporter.write_line("")
        for line in lines:
            terminalreporter.write_line(line)
