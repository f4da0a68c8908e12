"""Facts that a work directory stores for later commands."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.errors import SsrError, UsageError
from pipelines.stores.files import read_json, write_json
from pipelines.stores.manifest import WORK_FILE, differences

if TYPE_CHECKING:
    from pipelines.workdir.workspace import Workspace


def recall(work: Path) -> dict[str, Any]:
    """Return the stored facts of a work directory; empty if it is new."""
    path = work / WORK_FILE
    if not path.is_file():
        return {}
    content = read_json(path)
    config = (content.get("config") or {}) if isinstance(content, dict) else None
    sections = [content.get(key) or {} for key in ("dataset", "clip", "dino")] if isinstance(content, dict) else []
    if not isinstance(config, dict) or not all(isinstance(one, dict) for one in (*sections, *config.values())):
        raise SsrError(f"{path} is damaged", "remove it and give DATASET and --root again")
    memory: dict[str, Any] = content
    return memory


def remember(workspace: Workspace) -> None:
    """Store dataset, encoders, recipe and config; refuse a directory of another dataset.

    Raises:
        UsageError: The directory was made for other images.
    """
    refuse_other_dataset(workspace)
    now = {
        "dataset": workspace.dataset_options.model_dump(mode="json"),
        "clip": workspace.clip.model_dump(mode="json"),
        "dino": workspace.dino.model_dump(mode="json"),
        "recipe": workspace.recipe,
        "config": workspace.config,
    }
    if recall(workspace.work) != now:
        write_json(workspace.work / WORK_FILE, now)


def refuse_other_dataset(workspace: Workspace) -> None:
    """Compare the dataset with the one that the directory stores.

    Where the stored root is no longer a folder, another one is taken, because the dataset was moved. Each stage compares its
    images with those that its output was made of.

    Raises:
        UsageError: The directory was made for other images.
    """
    remembered = recall(workspace.work).get("dataset")
    if not remembered:
        return
    moved = not os.path.isdir(str(remembered.get("root")))
    changed = differences(remembered, workspace.dataset_options.model_dump(mode="json"))
    changed = [change for change in changed if change.startswith("kind" if moved else ("kind", "root"))]
    if changed:
        raise UsageError(f"{workspace.work} belongs to another dataset ({'; '.join(changed)})", "give another --work")
