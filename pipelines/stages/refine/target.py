"""One set of refine options during a run, with its store, masks and counts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from pipelines.datasets.base import Sample
from pipelines.errors import ImageError
from pipelines.execution.devices import resolve_device
from pipelines.execution.label_map_workers import LabelMapWorkers, MaskJob
from pipelines.execution.pool import resolve_workers
from pipelines.execution.progress import Progress
from pipelines.method.boundary import boundary_note, boundary_of
from pipelines.method.label_maps import make_mask
from pipelines.method.loading import Sources
from pipelines.options.stages import RefineOptions
from pipelines.stores.array_store import ArrayReader
from pipelines.stores.image_arrays import photo_attributes, read_cam
from pipelines.stores.manifest import digest
from pipelines.workdir.output import Output, Part
from pipelines.workdir.probabilities import Probabilities
from pipelines.workdir.settings import Digests, input_digest, mask_settings, refinement_settings
from pipelines.workdir.workspace import Workspace

STAGE = "refine"


@dataclass
class Target:
    """One set of options, and the folder of its output.

    Attributes:
        options: The options.
        folder: Folder of ``refined.h5`` and ``masks/``.
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


@contextmanager
def open_target(
    workspace: Workspace, target: Target, sources: Sources, progress: Progress, made_now: Digests = MappingProxyType({})
) -> Iterator[TargetJob]:
    """Open the store and the masks of one set of options; see `pipelines.workdir.output.Output`.

    Args:
        workspace: Names the CAMs and superpixels.
        target: The options, and the folder of the output.
        sources: Weights and text of the encoders.
        progress: Receives each mask.
        made_now: Digests of CAMs and superpixels that the same run makes.
    """
    made_from = {"cams": made_now.get("cams") or input_digest(workspace.cams, "ssr cams")}
    settings = refinement_settings(workspace, target.options, sources, made_now) | made_from
    path = target.options.probabilities
    probabilities = None if path is None else Probabilities(workspace, path)
    masks = {**mask_settings(target.options), "refined": digest(settings)}
    if probabilities is not None:
        masks |= probabilities.settings
    make = partial(make_mask, options=target.options, device=str(resolve_device(workspace.run.device)))
    processes = boundary_of(target.options).processes
    for note in (boundary_note(target.options), probabilities.note if probabilities is not None else None):
        if note:
            progress.note(note)
    with (
        probabilities or nullcontext(),
        workspace.output(
            STAGE,
            target.refined,
            settings,
            progress,
            then=[Part("masks", target.masks, masks)],
            prepare=sources.fetch,  # before --force removes anything
            log=STAGE if target.folder == workspace.work else f"{STAGE} {target.folder.name}",
        ) as output,
        LabelMapWorkers(make, resolve_workers(workspace.run.workers), output.made, processes=processes) as makers,
    ):
        _ = output.tally  # loads the tally, so that an image that failed before is not listed again
        yield TargetJob(target, output, makers, probabilities)


@dataclass(frozen=True)
class TargetJob:
    """One target during a run.

    Attributes:
        target: The options, and the folder of the output.
        output: Its store and its masks.
        makers: Workers that write its masks in the background.
        probabilities: Class probabilities that are mixed into the scores of its masks, or None.
    """

    target: Target
    output: Output
    makers: LabelMapWorkers
    probabilities: Probabilities | None = None

    def wants(self, sample: Sample) -> bool:
        """Return whether an image has no refined CAM yet. If it has one and no mask, its mask is queued."""
        masked = self.output.holds(sample, self.target.masks)
        if masked and self.output.holds_labels(sample):
            self.output.skipped()
            return False
        self.output.begin()
        self.makers.start()
        if not self.output.holds_labels(sample):
            if masked:  # with other labels: after a kill it must not look like a new one
                self._mask(sample).unlink()
            return True
        refined = self.output.committed(self.target.refined)
        if isinstance(refined, ArrayReader):
            cam, attributes = read_cam(refined, sample.image_id)
            self._submit(sample, cam, attributes["size"], attributes.get("photo", ""))
        return False

    def refined(self, sample: Sample, cam: NDArray[np.float16], size: list[int]) -> None:
        """Store a refined CAM, and queue its mask."""
        self.output.writer.add(sample.image_id, cam, photo_attributes(size, sample.photo, sample.labels))
        self._submit(sample, cam, size, sample.photo)

    def _mask(self, sample: Sample) -> Path:
        return self.target.masks / f"{sample.image_id}.png"

    def _submit(self, sample: Sample, cam: NDArray[np.float16], size: list[int], photo: str) -> None:
        try:
            probabilities = None if self.probabilities is None else self.probabilities.of(sample, size, photo)
        except ImageError as error:
            self.output.made(sample.image_id, error)
            return
        job = MaskJob(
            sample.image_id,
            sample.image_path,
            cam,
            sample.labels,
            (size[0], size[1]),
            self._mask(sample),
            sample.orient,
            probabilities=probabilities,
        )
        self.makers.submit(job)
