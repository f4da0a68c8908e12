"""What `ssr align` learns from: of each photo some patches, and plain CLIP's CAMs at their places.

CLIP runs once a photo, however long the training: a patch takes 1 KB, and an epoch over stored patches costs a small part of
one pass of the image tower, on a CPU as on a GPU.
"""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines.datasets.base import Sample
from pipelines.encoders.class_embeddings import TextEmbeddings
from pipelines.encoders.clip import ClipEncoder
from pipelines.encoders.dino import DinoEncoder
from pipelines.encoders.weights import LoadedClip, Weights, fetch_dino, resolve_dino
from pipelines.errors import SsrError
from pipelines.execution.batches import batches_by
from pipelines.execution.devices import resolve_batch_size, resolve_dtype
from pipelines.execution.progress import Progress
from pipelines.method.aligned_cams import head_features
from pipelines.method.cam_extractor import CamExtractor
from pipelines.method.cam_extractor import uses_superpixels as cams_use_superpixels
from pipelines.method.encoder_pair import EncoderPair, Photo
from pipelines.method.refinement import refined_maps, uses_clip, uses_dino, uses_superpixels
from pipelines.options.align import AlignOptions
from pipelines.options.stages import CamsOptions, RefineOptions
from pipelines.stores.array_store import ArrayReader, iter_records, store_exists
from pipelines.stores.image_arrays import superpixels_of
from pipelines.training.alignment_data import AlignmentData
from pipelines.workdir.counts import Counts
from pipelines.workdir.output import holds_labels
from pipelines.workdir.settings import cam_settings, refinement_settings
from pipelines.workdir.workspace import Workspace, superpixel_reader

STAGE = "align"


@dataclass(frozen=True)
class AlignInputs:
    """Where the patches and their CAMs lie, and how they are made.

    Attributes:
        workspace: Photos, superpixels, work directory.
        options: ``cam``, ``features``, ``tokens``.
        cams: Plain CLIP's read-out; its checkpoint, scales and flip are left out.
        refine: Affinity and masks of the refined CAM.
        clip: The frozen CLIP's weights.
        text: Class and background embeddings.
    """

    workspace: Workspace
    options: AlignOptions
    cams: CamsOptions
    refine: RefineOptions
    clip: Weights
    text: TextEmbeddings

    @property
    def tokens_path(self) -> Path:
        """Store of patch features, ``(T, E)`` fp16 a photo."""
        return self.workspace.work / "align" / "tokens.h5"

    @property
    def cams_path(self) -> Path:
        """Store of CAMs at the same patches, ``(K, T)`` fp16 a photo."""
        return self.workspace.work / "align" / "cams.h5"

    @property
    def refined(self) -> bool:
        """Whether CAMs are refined before they pool."""
        return self.options.cam == "refined"

    @property
    def needs_superpixels(self) -> bool:
        """Whether any part of the making asks for superpixels."""
        return cams_use_superpixels(self.cams) or (self.refined and uses_superpixels(self.refine))

    def settings(self) -> dict[str, Any]:
        """Whatever changes the patches or their CAMs."""
        options = self.options.model_dump(mode="json", include={"cam", "features", "tokens"})
        found: dict[str, Any] = {**options, "cams": cam_settings(self.workspace, self.cams, self.clip, self.text)}
        if self.refined:
            found["refine"] = refinement_settings(self.workspace, self.refine, self.clip, self._dino_weights)
        return found

    @cached_property
    def _dino_weights(self) -> Weights | None:
        options = self.workspace.dino
        return resolve_dino(options.model, options.pretrained) if self.refined and uses_dino(self.refine) else None

    def collect(self, clip: LoadedClip, device: torch.device, progress: Progress) -> Counts:
        """Encode every photo that is not there yet.

        Raises:
            UsageError: Made with other options before, and ``workspace.force`` is off.
            SsrError: No superpixels although they are asked for.
            TooManyFailures: More bad images than allowed; what was computed is kept.
        """
        workspace, dino_weights = self.workspace, self._dino_weights
        if dino_weights is not None:
            fetch_dino(dino_weights)
        # patches of the same settings are kept, unless they are what --force is to mend
        again = workspace.force and self._damaged()
        with (
            workspace.output(
                STAGE, self.tokens_path, self.settings(), progress, others=(self.cams_path,), again=again
            ) as output,
            superpixel_reader(workspace, self.needs_superpixels) as superpixels,
        ):
            todo = output.todo(output.holds_labels, self._with_class(), "align: patches")
            if todo:
                dtype = resolve_dtype(workspace.run.precision, device)
                encoder = ClipEncoder(clip, device, dtype)
                maker = CamExtractor(encoder, self.text, self.cams)
                dino = DinoEncoder(dino_weights, device, dtype) if dino_weights is not None else None
                unused = {} if self.refined and uses_clip(self.refine) else {"clip_blocks": 0}
                pair = EncoderPair(encoder, dino, self.refine.model_copy(update=unused))
                colours = self.refined and self.refine.superpixel_mask == "colour"

                def load(sample: Sample) -> Photo:
                    return pair.load(sample, superpixels_of(superpixels, sample.image_id), colours)

                photos = output.photos(load, todo)
                for batch in batches_by(photos, lambda photo: photo.grid, resolve_batch_size(workspace.run, device)):
                    for photo, patches, maps in self._made(batch, pair, maker):
                        attributes = {"labels": list(photo.sample.labels)}
                        output.writer_of(self.tokens_path).add(photo.sample.image_id, patches, attributes)
                        output.writer_of(self.cams_path).add(photo.sample.image_id, maps, attributes)
                        output.made(photo.sample.image_id)
        return output.counts

    def _damaged(self) -> bool:
        """Whether any patches or CAMs do not read back."""
        try:
            for path in (self.tokens_path, self.cams_path):
                if store_exists(path):
                    for _ in iter_records(path):
                        pass
        except SsrError:
            return True
        return False

    def _made(
        self, photos: Sequence[Photo], pair: EncoderPair, maker: CamExtractor
    ) -> Iterator[tuple[Photo, NDArray[np.float16], NDArray[np.float16]]]:
        encoded = pair.encode(photos, clip_tokens=True)
        if encoded.clip is None:
            raise ValueError("CLIP's tokens were asked for")
        tail = pair.clip.tail(encoded.clip.grid)
        features = head_features(encoded.clip.tokens_cls, tail, self.options.features)  # (B, N, E)
        labels = [photo.sample.labels for photo in photos]
        memberships = [photo.superpixels.membership if photo.superpixels else None for photo in photos]
        maps = torch.split(maker.read_out(encoded.clip, labels, memberships), [len(own) for own in labels])
        for index, (photo, cam) in enumerate(zip(photos, maps, strict=True)):
            if self.refined:
                cam = self._refined(photo, cam, encoded.attention_of(index), encoded.dino_tokens_of(index))  # (K, N)
            drawn = torch.from_numpy(drawn_patches(photo.sample.image_id, cam.shape[1], self.options.tokens)).to(cam.device)
            yield photo, _half(features[index, drawn]), _half(cam[:, drawn])

    def _refined(
        self, photo: Photo, cam: Tensor, attention: tuple[Tensor | None, Tensor | None], dino_tokens: Tensor | None
    ) -> Tensor:
        superpixels = photo.superpixels
        if superpixels is not None and dino_tokens is not None and self.refine.superpixel_mask == "cluster":
            superpixels = superpixels.with_features(dino_tokens)
        return refined_maps(cam, photo.grid, attention, superpixels, self.refine)

    def data(self) -> AlignmentData:
        """Everything that was collected, patches in a memory map that has no name and ends with the process.

        Raises:
            SsrError: No photo has a class, or none could be used.
        """
        with_class = self._with_class()
        if not with_class:
            raise SsrError("no photo has a class: there is nothing to align", "check --labels")
        none = SsrError("none of the photos could be used: there is nothing to align", "see failures.jsonl in the work folder")
        if not store_exists(self.tokens_path) or not store_exists(self.cams_path):
            raise none
        with ArrayReader(self.tokens_path) as tokens, ArrayReader(self.cams_path) as cams:
            samples = [sample for sample in with_class if holds_labels(sample, tokens, cams)]
            if not samples:
                raise none
            shape = (len(samples), self.options.tokens, self.text.classes.shape[1])
            with tempfile.TemporaryFile(dir=self.tokens_path.parent) as file:
                patches = np.memmap(file, np.float16, "w+", shape=shape)
            for row, sample in enumerate(samples):
                patches[row] = tokens.read(sample.image_id)[0]
            maps = [cams.read(sample.image_id)[0].astype(np.float32) for sample in samples]
        return AlignmentData(patches, maps, [sample.labels for sample in samples], tuple(sample.image_id for sample in samples))

    def _with_class(self) -> list[Sample]:
        return [sample for sample in self.workspace.dataset.samples if sample.labels]


def drawn_patches(image_id: str, patches: int, count: int) -> NDArray[np.int64]:
    """The patches of a photo that are kept: the same on every run, each once unless there are too few.

    Args:
        image_id: Seeds the draw.
        patches: Patches N of the photo.
        count: Patches wanted.

    Returns:
        ``(count,)`` in ``0..N - 1``.
    """
    draw = np.random.default_rng(zlib.crc32(image_id.encode()))
    return draw.choice(patches, count, replace=patches < count).astype(np.int64)


def _half(tensor: Tensor) -> NDArray[np.float16]:
    array: NDArray[np.float16] = tensor.cpu().numpy().astype(np.float16)
    return array
