"""The dataset of the fault tests, their forking process, and the table at the end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from .harness import FULL, IMAGES, ROOT, TOML, Lab, Server, Table

TABLE = Table()

if not hasattr(os, "fork"):
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def lab(tmp_path_factory, make_voc, models, tiny_voc) -> Iterator[Lab]:
    """A drawn dataset and a process that forks runs over it."""
    folder = tmp_path_factory.mktemp("faults")
    names = ("cat", "dog", "bird")
    photos = {
        f"photo_{n:02d}": ((48, 32) if n % 3 else (32, 48), names[: 1 + n % 3] if n % 5 else ("car",)) for n in range(IMAGES)
    }
    root = folder / "VOC2012"
    make_voc(root, photos)
    config = tiny_voc.write_config(folder / "faults.toml", models, TOML)
    config.write_text(config.read_text().replace(str(tiny_voc.root), str(root)))
    server = Server(models.clip_config)
    assert Path(server.package).parent == ROOT
    yield Lab(folder, config, root, server)
    server.close()


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
