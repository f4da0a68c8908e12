"""The training data of `ssr align`: some patches of each image, and plain CLIP's CAMs there.

CLIP runs once per image, however long the training is. A stored patch takes 1 KB, and an epoch over stored patches costs a
small part of one pass of the image tower, on a CPU as on a GPU.
"""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines.datasets.base import Sample
from pipelines.errors import SsrError
from pipelines.execution.batches import batches_by
from pipelines.execution.devices import resolve_batch_size, resolve_dtype
from pipelines.execution.fitting import fitting
from pipelines.execution.progress import Progress
from pipelines.method.aligned import head_features
from pipelines.method.composition import initial_cams, refined_cams
from pipelines.method.encoders import Blocks
from pipelines.method.evidence import Evidence, Needs
from pipelines.method.loading import FrozenModels, Sources
from pipelines.method.parts_in_use import cam_needs, refine_needs
from pipelines.method.photo import Photo, too_large
from pipelines.method.readouts import background_share
from pipelines.options.align import AlignOptions
from pipelines.options.stages import CamsOptions, RefineOptions
from pipelines.stores.array_store import ArrayReader, iter_records, store_exists
from pipelines.training.alignment_data import AlignmentData
from pipelines.training.cooccurrence import unknown_patches
from pipelines.workdir.counts import Counts
from pipelines.workdir.output import holds_labels
from pipelines.workdir.photos import load_photo
from pipelines.workdir.settings import cam_settings, refinement_settings
from pipelines.workdir.workspace import Workspace, superpixel_reader

STAGE = "align"


@dataclass(frozen=True)
class AlignInputs:
    """The stores of patches and their CAMs, and the options that they are made with.

    Attributes:
        workspace: Names the images, superpixels and work directory.
        options: ``cam``, ``features``, ``tokens``, ``cooccurrence``.
        cams: Plain CLIP's read-out; its checkpoint, scales and flip are left out.
        refine: Affinity and masks of the refined CAM.
        sources: Weights and text of the encoders; see `sources_of`.
    """

    workspace: Workspace
    options: AlignOptions
    cams: CamsOptions
    refine: RefineOptions
    sources: Sources

    @property
    def tokens_path(self) -> Path:
        """Store of patch features, ``(T, E)`` fp16 per image."""
        return self.workspace.work / "align" / "tokens.h5"

    @property
    def cams_path(self) -> Path:
        """Store of CAMs at the same patches, ``(K, T)`` fp16 per image."""
        return self.workspace.work / "align" / "cams.h5"

    @property
    def inputs_path(self) -> Path:
        """Store of the same patches at the input of CLIP's last block, where they are compared; ``(T, D)`` fp16 per image."""
        return self.workspace.work / "align" / "inputs.h5"

    @property
    def background_path(self) -> Path:
        """Store of the likeliest background word's probability at the same patches, ``(T,)`` fp16 per image."""
        return self.workspace.work / "align" / "background.h5"

    @property
    def paths(self) -> tuple[Path, ...]:
        """All stores that are written."""
        paths = self.tokens_path, self.cams_path
        return (*paths, self.inputs_path, self.background_path) if self.options.cooccurrence else paths

    @property
    def needs(self) -> Needs:
        """Fields of the evidence that patches and CAMs are made from."""
        return needs_of(self.options, self.cams, self.refine)

    def settings(self) -> dict[str, Any]:
        """Return all settings that change the patches or their CAMs."""
        options = self.options.model_dump(mode="json", include={"cam", "features", "tokens"})
        settings: dict[str, Any] = {**options, "cams": cam_settings(self.workspace, self.cams, self.sources)}
        if self.options.cooccurrence:
            settings["background"] = self._background_options().model_dump(
                mode="json", include={"dense_scale", "superpixel_share"}
            )
        if self.options.cam == "refined":
            settings["refine"] = refinement_settings(self.workspace, self.refine, self.sources)
        return settings

    def collect(self, load: Callable[[], FrozenModels], progress: Progress) -> Counts:
        """Encode every image whose patches are not stored.

        Args:
            load: Loads the encoders, once; not called if the patches of every image are stored.
            progress: Receives each image.

        Raises:
            UsageError: The patches were made with other options, and ``workspace.force`` is off.
            SsrError: There are no superpixels although a part needs them.
            TooManyFailures: There are more bad images than allowed; what was computed is kept.
        """
        workspace = self.workspace
        # patches of the same settings are kept even with --force, unless they are damaged
        again = workspace.force and self._damaged()
        with (
            workspace.output(
                STAGE, self.tokens_path, self.settings(), progress, others=self.paths[1:], again=again, prepare=load
            ) as output,
            superpixel_reader(workspace, "superpixels" in self.needs) as superpixels,
        ):
            todo = output.todo(output.holds_labels, self._with_class(), "align: patches")
            if todo:
                blocks = Blocks(clip_attention=self.refine.clip_blocks, dino_attention=self.refine.dino_blocks)
                encoders = load().encoders(self.needs, blocks)
                photos = output.photos(partial(load_photo, encoders, superpixels), todo)
                batches = batches_by(photos, lambda photo: photo.grid, resolve_batch_size(workspace.run, encoders.clip.device))
                made = fitting(
                    lambda batch: list(self._made(encoders.encode(batch), batch)),
                    batches,
                    lambda photo: output.made(photo.sample.image_id, too_large(photo)),
                )
                for arrays in made:
                    for photo, *stored in arrays:
                        attributes = {"labels": list(photo.sample.labels), "photo": photo.sample.photo}
                        for path, array in zip(self.paths, stored, strict=True):
                            output.writer_of(path).add(photo.sample.image_id, array, attributes)
                        output.made(photo.sample.image_id)
        return output.counts

    def _damaged(self) -> bool:
        """Return whether any stored patches or CAMs cannot be read."""
        try:
            for path in self.paths:
                if store_exists(path):
                    for _ in iter_records(path):
                        pass
        except SsrError:
            return True
        return False

    def _made(self, evidence: Evidence, photos: Sequence[Photo]) -> Iterator[tuple[Any, ...]]:
        """Yield each image and its arrays, one for each path of `paths`."""
        features = head_features(evidence.tokens_cls, evidence.tail, self.options.features)  # (B, N, E)
        maps = initial_cams(evidence, self.cams)  # (sum of K, N)
        if self.options.cam == "refined":
            maps = refined_cams(evidence, maps, self.refine)
        others: list[Tensor] = []
        if self.options.cooccurrence:
            entering = evidence.tail.patches(evidence.tokens_cls)  # (B, N, D)
            others = [entering, background_share(evidence, self._background_options())]
        for index, (photo, cam) in enumerate(zip(photos, evidence.by_image(maps), strict=True)):
            drawn = torch.from_numpy(drawn_patches(photo.sample.image_id, cam.shape[1], self.options.tokens)).to(cam.device)
            yield photo, _half(features[index, drawn]), _half(cam[:, drawn]), *(_half(other[index, drawn]) for other in others)

    def _background_options(self) -> CamsOptions:
        """Return the options by which background words are read out; superpixels have a share only if the CAMs read them."""
        return self.cams if "superpixels" in self.needs else self.cams.model_copy(update={"superpixel_share": 0.0})

    def collected(self) -> list[Sample]:
        """Return the images whose patches and CAMs are stored and were made with the present labels.

        Raises:
            SsrError: No image has a class, or no image could be used.
        """
        with_class = self._with_class()
        if not with_class:
            raise SsrError("no image has a class: there is nothing to align", "check --labels")
        none = SsrError("none of the images could be used: there is nothing to align", "see failures.jsonl in the work folder")
        if not all(store_exists(path) for path in self.paths):
            raise none
        with ExitStack() as stack:
            stores = [stack.enter_context(ArrayReader(path)) for path in self.paths]
            samples = [sample for sample in with_class if holds_labels(sample, *stores)]
        if not samples:
            raise none
        return samples

    def data(self, samples: Sequence[Sample], device: torch.device) -> AlignmentData:
        """Read the stored data of some images, with patches in an unnamed memory map that ends with the process.

        Args:
            samples: Images that were `collected`.
            device: Device of the search for similar patches.
        """
        labels = [sample.labels for sample in samples]
        with ArrayReader(self.cams_path) as cams:
            maps = [cams.read(sample.image_id)[0].astype(np.float32) for sample in samples]
        data = AlignmentData(self._mapped(self.tokens_path, samples), maps, labels, tuple(s.image_id for s in samples))
        if not self.options.cooccurrence:
            return data
        with ArrayReader(self.background_path) as background:
            shares = np.stack([background.read(sample.image_id)[0] for sample in samples])  # (P, T)
        dtype = resolve_dtype(self.workspace.run.precision, device)
        inputs, options = self._mapped(self.inputs_path, samples), self.options
        unknown = unknown_patches(inputs, shares, labels, options.cooccurrence, options.neighbours, device, dtype)
        return replace(data, unknown=unknown)

    def _mapped(self, path: Path, samples: Sequence[Sample]) -> NDArray[np.float16]:
        with ArrayReader(path) as reader:
            shape = (len(samples), self.options.tokens, reader.read(samples[0].image_id)[0].shape[1])
            with tempfile.TemporaryFile(dir=path.parent) as file:
                patches = np.memmap(file, np.float16, "w+", shape=shape)
            for row, sample in enumerate(samples):
                patches[row] = reader.read(sample.image_id)[0]
        return patches

    def _with_class(self) -> list[Sample]:
        return [sample for sample in self.workspace.dataset.samples if sample.labels]


def needs_of(options: AlignOptions, cams: CamsOptions, refine: RefineOptions) -> Needs:
    """Return the fields of the evidence that patches and CAMs are made from with these options."""
    patches: Needs = frozenset({"tokens_cls", "text"})
    needs = cam_needs(cams) | patches
    return needs | refine_needs(refine) if options.cam == "refined" else needs


def drawn_patches(image_id: str, patches: int, count: int) -> NDArray[np.int64]:
    """Draw the patches of an image that are stored: the same on every run, and each once unless there are too few.

    Args:
        image_id: Seed of the draw.
        patches: Number of patches N of the image.
        count: Number of patches to draw.

    Returns:
        ``(count,)`` in ``0..N - 1``.
    """
    draw = np.random.default_rng(zlib.crc32(image_id.encode()))
    return draw.choice(patches, count, replace=patches < count).astype(np.int64)


def _half(tensor: Tensor) -> NDArray[np.float16]:
    array: NDArray[np.float16] = tensor.cpu().numpy().astype(np.float16)
    return array
