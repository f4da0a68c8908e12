"""One set of refine options during a run: its store, its masks, its counts."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.datasets.base import Sample
from pipelines.encoders.weights import Weights
from pipelines.execution.label_map_workers import LabelMapWorkers, MaskJob
from pipelines.execution.pool import resolve_workers
from pipelines.execution.progress import Progress
from pipelines.method.label_maps import make_mask
from pipelines.options.stages import RefineOptions
from pipelines.stores.array_store import ArrayReader
from pipelines.stores.files import remove_leftovers
from pipelines.stores.image_arrays import read_cam
from pipelines.stores.manifest import digest
from pipelines.stores.mask_store import remove_masks
from pipelines.workdir.image_run import Run
from pipelines.workdir.settings import input_digest, mask_settings, refinement_settings
from pipelines.workdir.workspace import Workspace, has_labels

STAGE = "refine"


@dataclass
class Target:
    """One set of options and where its output goes.

    Attributes:
        options: What to compute.
        folder: Gets ``refined.h5`` and ``masks/``.
    """

    options: RefineOptions
    folder: Path

    @property
    def refined(self) -> Path:
        """Store of refined CAMs."""
        return self.folder / "refined.h5"

    @property
    def masks(self) -> Path:
        """Folder of pseudo-masks."""
        return self.folder / "masks"


class TargetJob:
    """One target during a run.

    Attributes:
        target: What is computed and where it goes.
        run: Counts of its masks.
    """

    def __init__(
        self, workspace: Workspace, target: Target, clip: Weights, dino: Weights | None, stack: ExitStack, progress: Progress
    ) -> None:
        self.target = target
        self._workspace = workspace
        self._writer = stack.enter_context(workspace.writer(target.refined))
        made_from = {"cams": input_digest(workspace.cams, "ssr cams")}
        settings = refinement_settings(workspace, target.options, clip, dino) | made_from
        masks = {**mask_settings(target.options), "refined": digest(settings)}
        masks_only = workspace.differs(target.masks, masks) and not workspace.differs(target.refined, settings)
        workspace.refuse_changes(target.refined, settings)
        workspace.refuse_changes(target.masks, masks)  # before the manifest of the refined CAMs is written
        self._refined_manifest = workspace.settle(target.refined, STAGE, settings, self._writer.clear, again=not masks_only)
        self._mask_manifest = workspace.settle(
            target.masks, "masks", masks, partial(remove_masks, target.masks, workspace.shard)
        )
        target.masks.mkdir(parents=True, exist_ok=True)
        if workspace.shard is None:  # else they may be those of other shards
            remove_leftovers(target.masks)
        self._committed = workspace.committed(target.refined, stack)
        place = target.folder
        self.run = Run(workspace, STAGE if place == workspace.work else f"{STAGE} {place.name}", progress)
        self._makers = LabelMapWorkers(make_mask, target.options, resolve_workers(workspace.run.workers), self.run.made)

    def wants(self, sample: Sample) -> bool:
        """Whether an image has no refined CAM yet. If it has one and no mask, its mask is queued."""
        masked = self._mask(sample).is_file()
        if not has_labels(self._committed, sample):
            if masked:  # of other labels: a kill must not leave it to pass for a new one
                self._mask(sample).unlink()
            return True
        if masked:
            self.run.skipped()
        elif isinstance(self._committed, ArrayReader):
            cam, attributes = read_cam(self._committed, sample.image_id)
            self._submit(sample, cam, attributes["size"])
        return False

    def refined(self, sample: Sample, cam: NDArray[np.float16], size: list[int]) -> None:
        """Store a refined CAM and queue its mask."""
        self._writer.add(sample.image_id, cam, {"labels": list(sample.labels), "size": size})
        self._submit(sample, cam, size)

    def drain(self) -> None:
        """Wait for all masks."""
        self._makers.drain()

    def record(self) -> None:
        """Write what the run came to."""
        for manifest, output in ((self._refined_manifest, self.target.refined), (self._mask_manifest, self.target.masks)):
            self._workspace.record(output, manifest, self.run.counts)

    def _mask(self, sample: Sample) -> Path:
        return self.target.masks / f"{sample.image_id}.png"

    def _submit(self, sample: Sample, cam: NDArray[np.float16], size: list[int]) -> None:
        job = MaskJob(sample.image_id, sample.image_path, cam, sample.labels, (size[0], size[1]), self._mask(sample))
        self._makers.submit(job)

    def __enter__(self) -> TargetJob:
        self._makers.__enter__()
        return self

    def __exit__(self, *details: Any) -> None:
        self._makers.__exit__(*details)
