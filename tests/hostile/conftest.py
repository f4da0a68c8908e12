"""What the tests of hostile input share: one line instead of a traceback, and folders that must stay as they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from pipelines.errors import SsrError

settings.register_profile("hostile", derandomize=True, deadline=None, database=None)

LONGEST = 700  # characters of an error line


def is_one_line(text: str) -> None:
    assert text.startswith("error: "), text[:300]
    assert text.count("\n") == 1, text[:300]
    assert "unexpected" not in text, text[:300]
    assert "Traceback" not in text
    assert len(text) < LONGEST, f"{len(text)} characters"


@pytest.fixture(scope="session")
def refused(ssr: Callable[..., Any]) -> Callable[..., str]:
    """Run a command that must end in one line on stderr; returns the line."""

    def refused(*words: object, code: int | None = None) -> str:
        ran = ssr(*words, code=code)
        assert ran.code in {1, 2}, ran.text
        lines = [line for line in ran.err.splitlines(keepends=True) if line.startswith("error: ")]
        is_one_line("".join(lines))
        return lines[0]

    return refused


@pytest.fixture(scope="session")
def one_line() -> Callable[..., str]:
    """Call a reader that must raise an `SsrError` of one short line; returns it."""

    def one_line(read: Callable[..., object], *arguments: object) -> str:
        with pytest.raises(SsrError) as caught:
            read(*arguments)
        text = str(caught.value)
        assert "\n" not in text, text[:300]
        assert len(text) < LONGEST, f"{len(text)} characters"
        return text

    return one_line


@pytest.fixture
def guarded(tmp_path: Path) -> Callable[[], Path]:
    """A folder ``root`` inside a folder of bait; on leaving, nothing outside ``root`` may have changed."""
    outside = tmp_path / "outside"
    root = outside / "between" / "root"
    root.mkdir(parents=True)
    for folder in (outside, outside / "between"):
        (folder / "bait.png").write_bytes(b"bait")
        (folder / "x.png").write_bytes(b"bait")

    def around() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in outside.rglob("*") if path.is_file() and root not in path.parents}

    before = around()

    def check() -> Path:
        assert around() == before
        return root

    return check
