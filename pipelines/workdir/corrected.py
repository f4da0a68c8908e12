"""Label maps of a work directory that people corrected: their manifest, and their use in trainings beside pseudo-masks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.stores.files import files_sha256
from pipelines.stores.manifest import Manifest
from pipelines.stores.mask_store import written_masks
from pipelines.workdir.workspace import Workspace

SUPERVISION = "corrected"
"""Value of ``supervision`` in the file of a model that was trained on some of them."""


@dataclass(frozen=True)
class Corrected:
    """Images whose label map a person corrected; only the names of the files are read here.

    Attributes:
        folder: Folder of the label maps.
        image_ids: Ids of those that are images of the dataset.
    """

    folder: Path
    image_ids: frozenset[str]

    def path(self, image_id: str) -> Path | None:
        """Return the path of an image's label map, or None if there is none."""
        return self.folder / f"{image_id}.png" if image_id in self.image_ids else None

    def settings(self) -> dict[str, Any]:
        """Return the settings of a training's manifest: number and digest of the label maps; empty if there are none."""
        if not self.image_ids:
            return {}
        content = files_sha256((image_id, self.folder / f"{image_id}.png") for image_id in sorted(self.image_ids))
        return {"corrected": {"images": len(self.image_ids), "content": content}}

    def supervision(self, asked_for: str) -> str:
        """Return the value of ``supervision`` in the model's file."""
        return SUPERVISION if self.image_ids and asked_for == "pseudo" else asked_for

    def said(self, images: int) -> list[str]:
        """Return a line on how many images have a mask of each kind; none without any corrected mask."""
        count = len(self.image_ids)
        words = f"{count} corrected masks and {images - count} pseudo-masks (--no-corrected: pseudo-masks alone)"
        return [words] if count else []


def corrected_masks(workspace: Workspace, supervision: str, use: bool) -> Corrected:
    """Return the corrected masks that a training uses: none if ``supervision`` is ``masks`` or if they are switched off."""
    there = written_masks(workspace.corrected) if use and supervision == "pseudo" else set()
    own = {sample.image_id for sample in workspace.dataset.samples if sample.image_id in there} if there else set()
    return Corrected(workspace.corrected, frozenset(own))


def corrections_manifest(workspace: Workspace) -> Manifest:
    """Return the manifest of ``WORK/corrected`` with its classes and present number of label maps, for any writing command."""
    manifest = workspace.manifest("import", {"classes": list(workspace.dataset.classes.names)})
    manifest.complete, manifest.counts = True, {"done": len(written_masks(workspace.corrected))}
    return manifest
