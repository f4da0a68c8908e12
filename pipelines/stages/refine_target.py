"""One set of refine options during a run: its store, its masks, its counts."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.datasets.base import Sample
from pipelines.encoders.weights import Weights
from pipelines.errors import ImageError
from pipelines.execution.devices import precision_name
from pipelines.execution.failures import Failures
from pipelines.execution.pool import resolve_workers
from pipelines.execution.progress import Progress
from pipelines.options.stages import RefineOptions
from pipelines.stages.counts import Counts
from pipelines.stages.masks import MASK_KEYS, MaskJob, MaskMakers, make_mask, mask_settings, remove_masks
from pipelines.stages.refinement import uses_clip, uses_dino, uses_superpixels
from pipelines.stages.workspace import Workspace, input_digest
from pipelines.stores.array_store import ArrayReader, ArrayWriter, store_exists
from pipelines.stores.files import remove_leftovers
from pipelines.stores.manifest import digest
from pipelines.stores.mask_store import written_masks

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
        unrefined: Ids of images that have no refined CAM yet.
        counts: Masks done, skipped and failed so far.
    """

    def __init__(
        self, workspace: Workspace, target: Target, clip: Weights, dino: Weights | None, stack: ExitStack, progress: Progress
    ) -> None:
        self.target = target
        self._samples = workspace.dataset.samples
        self._progress = progress
        self._writer = stack.enter_context(ArrayWriter(target.refined))
        made_from = {"cams": input_digest(workspace.cams, "ssr cams")}
        settings = refinement_settings(workspace, target.options, clip, dino) | made_from
        place = target.folder
        masks = {**mask_settings(target.options), "refined": digest(settings)}
        masks_only = workspace.differs(target.masks, masks) and not workspace.differs(target.refined, settings)
        self._refined_manifest = workspace.settle(target.refined, STAGE, settings, self._writer.clear, again=not masks_only)
        self._mask_manifest = workspace.settle(target.masks, "masks", masks, partial(remove_masks, target.masks))
        target.masks.mkdir(parents=True, exist_ok=True)
        remove_leftovers(target.masks)
        self.failures: Failures = workspace.failures(STAGE if place == workspace.work else f"{STAGE} {place.name}", progress)
        present = _refined_ids(target.refined, self._samples)
        self.unrefined = {s.image_id for s in self._samples} - present
        remove_masks(target.masks, self.unrefined)  # of other labels: a kill must not leave them to pass for new ones
        self._unmasked = ({s.image_id for s in self._samples} - written_masks(target.masks)) | self.unrefined
        self.counts = Counts(skipped=len(self._samples) - len(self._unmasked))
        self._makers = MaskMakers(make_mask, target.options, resolve_workers(workspace.run.workers), self._mask_done)

    def refined(self, sample: Sample, cam: NDArray[np.float16], size: list[int]) -> None:
        """Store a refined CAM and queue its mask."""
        self._writer.add(sample.image_id, cam, {"labels": list(sample.labels), "size": size})
        self._submit(sample, cam, size)

    def failed(self, image_id: str, error: ImageError) -> None:
        """Count a bad image."""
        if image_id in self.unrefined:
            self.unrefined.discard(image_id)
            self._mask_done(image_id, error)

    def make_missing_masks(self) -> None:
        """Queue masks whose refined CAM is there from an earlier run; then wait for all."""
        todo = [s for s in self._samples if s.image_id in self._unmasked]
        if todo:
            self._writer.commit()
        if todo and store_exists(self.target.refined):
            with ArrayReader(self.target.refined) as reader:
                for sample in todo:
                    if sample.image_id in reader:
                        cam, attributes = reader.read(sample.image_id)
                        self._submit(sample, cam, attributes["size"])
        self._makers.drain()

    def finish(self) -> Counts:
        """Write the manifests."""
        for manifest, output in ((self._refined_manifest, self.target.refined), (self._mask_manifest, self.target.masks)):
            manifest.counts, manifest.complete = self.counts.as_dict(), True
            manifest.write(output.with_suffix(".json"))
        return self.counts

    def _submit(self, sample: Sample, cam: NDArray[np.float16], size: list[int]) -> None:
        self._unmasked.discard(sample.image_id)
        target = self.target.masks / f"{sample.image_id}.png"
        self._makers.submit(MaskJob(sample.image_id, sample.image_path, cam, sample.labels, (size[0], size[1]), target))

    def _mask_done(self, image_id: str, error: ImageError | None) -> None:
        self._unmasked.discard(image_id)
        self._progress.advance()
        if error is None:
            self.counts.done += 1
        else:
            self.counts.failed += 1
            self.failures.add(image_id, error)

    def __enter__(self) -> TargetJob:
        self._makers.__enter__()
        return self

    def __exit__(self, *details: Any) -> None:
        self._makers.__exit__(*details)


def refinement_settings(workspace: Workspace, options: RefineOptions, clip: Weights, dino: Weights | None) -> dict[str, Any]:
    """Whatever changes a refined CAM, but for the CAM itself."""
    settings = options.model_dump(mode="json", exclude=set(MASK_KEYS))
    settings["clip"] = clip.provenance() if uses_clip(options) else None
    settings["dino"] = dino.provenance() if dino and uses_dino(options) else None
    settings["precision"] = precision_name(workspace.run)
    if uses_superpixels(options):
        settings["superpixels"] = input_digest(workspace.superpixels, "ssr superpixels")
    return settings


def _refined_ids(store: Path, samples: Sequence[Sample]) -> set[str]:
    if not store_exists(store):
        return set()
    with ArrayReader(store) as reader:
        return {
            s.image_id for s in samples
            if s.image_id in reader and reader.attributes(s.image_id).get("labels") == list(s.labels)
        }  # fmt: skip
