"""Small datasets on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

Writer = Callable[[Path, str], Path]


@pytest.fixture
def write() -> Writer:
    """Write a text file, folders included."""

    def write(path: Path, text: str) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
        return path

    return write


@pytest.fixture
def photo() -> Callable[..., Path]:
    """Write a photo of one colour; size is (width, height)."""

    def photo(path: Path, size: tuple[int, int] = (6, 4), mode: str = "RGB") -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new(mode, size).save(path)
        return path

    return photo
