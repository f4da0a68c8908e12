"""Label maps that people corrected in a work directory: their manifest, and how trainings use them beside pseudo-masks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.stores.files import files_sha256
from pipelines.stores.manifest import Manifest
from pipelines.stores.mask_store import written_masks
from pipelines.workdir.workspace import Workspace

SUPERVISION = "corrected"
"""What the files of a model say that learned from some of them."""


@dataclass(frozen=True)
class Corrected:
    """Images whose label map a person corrected; only their names are looked at here.

    Attributes:
        folder: Where the label maps lie.
        image_ids: Those of images of the dataset.
    """

    folder: Path
    image_ids: frozenset[str]

    def path(self, image_id: str) -> Path | None:
        """The label map of an image, if there is one."""
        return self.folder / f"{image_id}.png" if image_id in self.image_ids else None

    def settings(self) -> dict[str, Any]:
        """For the manifest of a training: how many there are and a digest of ids and content; empty if there are none."""
        if not self.image_ids:
            return {}
        content = files_sha256((image_id, self.folder / f"{image_id}.png") for image_id in sorted(self.image_ids))
        return {"corrected": {"images": len(self.image_ids), "content": content}}

    def supervision(self, asked_for: str) -> str:
        """What the model's file says that it learned from."""
        return SUPERVISION if self.image_ids and asked_for == "pseudo" else asked_for

    def said(self, images: int) -> list[str]:
        """How many of some images have a mask of each kind, for people; nothing without any corrected one."""
        count = len(self.image_ids)
        words = f"{count} corrected masks and {images - count} pseudo-masks (--no-corrected: pseudo-masks alone)"
        return [words] if count else []


def corrected_masks(workspace: Workspace, supervision: str, use: bool) -> Corrected:
    """The corrected masks that a training uses: none with ``supervision`` masks, or where they are switched off."""
    there = written_masks(workspace.corrected) if use and supervision == "pseudo" else set()
    own = {sample.image_id for sample in workspace.dataset.samples if sample.image_id in there} if there else set()
    return Corrected(workspace.corrected, frozenset(own))


def corrections_manifest(workspace: Workspace) -> Manifest:
    """The manifest of ``WORK/corrected`` as it is, whichever command wrote there: its classes and the number of label maps."""
    manifest = workspace.manifest("import", {"classes": list(workspace.dataset.classes.names)})
    manifest.complete, manifest.counts = True, {"done": len(written_masks(workspace.corrected))}
    return manifest
