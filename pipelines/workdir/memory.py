"""What a work directory remembers for the commands that follow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipelines.errors import SsrError
from pipelines.stores.files import read_json

MEMORY = "work.json"
"""File in which a work directory remembers its dataset, encoders, recipe and config for the commands that follow."""


def recall(work: Path) -> dict[str, Any]:
    """What a work directory remembers; empty if it is new."""
    path = work / MEMORY
    if not path.is_file():
        return {}
    content = read_json(path)
    config = (content.get("config") or {}) if isinstance(content, dict) else None
    sections = [content.get(key) or {} for key in ("dataset", "clip", "dino")] if isinstance(content, dict) else []
    if not isinstance(config, dict) or not all(isinstance(one, dict) for one in (*sections, *config.values())):
        raise SsrError(f"{path} is damaged", "remove it and give DATASET and --root again")
    found: dict[str, Any] = content
    return found
