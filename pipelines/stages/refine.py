"""`ssr refine`: spread CAMs along CLIP + DINO attention, masked by superpixels, and make pseudo-masks.

The encoders run once an image, however many sets of options are asked for: a table of an ablation costs one pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipelines.datasets.base import Sample
from pipelines.datasets.image import load_image
from pipelines.encoders.clip import ClipEncoder
from pipelines.encoders.dino import DinoEncoder
from pipelines.encoders.image import encoder_input, token_grid
from pipelines.encoders.weights import Weights, build_clip, resolve_clip, resolve_dino
from pipelines.errors import ImageError, SsrError, UsageError
from pipelines.execution.batches import batches_by
from pipelines.execution.devices import resolve_batch_size, resolve_device, resolve_dtype
from pipelines.execution.failures import Failures
from pipelines.execution.pool import prefetch, resolve_workers
from pipelines.execution.progress import Progress, Silent
from pipelines.ops.superpixels import mean_lab, token_membership
from pipelines.options.stages import RefineOptions
from pipelines.stages.counts import Counts
from pipelines.stages.masks import MASK_KEYS, MaskJob, MaskMakers, mask_settings
from pipelines.stages.refinement import GridSuperpixels, build_affinity, column_mask, refine_cam
from pipelines.stages.workspace import Workspace, input_digest
from pipelines.stores.array_store import ArrayReader, ArrayWriter, store_exists
from pipelines.stores.files import remove_leftovers
from pipelines.stores.manifest import Manifest, digest
from pipelines.stores.mask_store import written_masks

STAGE = "refine"


@dataclass(frozen=True)
class Photo:
    """A decoded photo, resized for both encoders to one grid.

    Attributes:
        sample: Which photo.
        grid: Token grid ``(h, w)``.
        clip_input: ``(3, 16 h, 16 w)``.
        dino_input: ``(3, P h, P w)`` with DINO's patch size P.
        superpixels: On the same grid, or None if no option asks for them.
    """

    sample: Sample
    grid: tuple[int, int]
    clip_input: Tensor
    dino_input: Tensor
    superpixels: GridSuperpixels | None


class AttentionMaker:
    """Runs the encoders over batches; holds no files.

    Args:
        clip: The frozen CLIP.
        dino: The frozen DINO.
        options: ``clip_blocks`` and ``dino_blocks``; 0 leaves an encoder out.
    """

    def __init__(self, clip: ClipEncoder, dino: DinoEncoder | None, options: RefineOptions) -> None:
        self.clip = clip
        self.dino = dino
        depth = len(clip.blocks)
        self._clip_blocks = range(max(0, depth - options.clip_blocks), depth)
        self._dino_blocks = range(0)
        if dino is not None:
            self._dino_blocks = range(max(0, len(dino.blocks) - options.dino_blocks), len(dino.blocks))

    def load(self, sample: Sample, superpixels: NDArray[np.integer] | None, colours: bool) -> Photo:
        """Decode a photo and resize it for both encoders.

        Args:
            sample: The photo.
            superpixels: Its superpixels ``(H, W)``, or None if no option asks for them.
            colours: Also compute the superpixels' mean colours.

        Raises:
            ImageError: The file cannot be used, or its superpixels are of another size.
        """
        image = load_image(sample.image_path)
        if superpixels is not None and superpixels.shape != (image.height, image.width):
            raise ImageError(
                f"its superpixels are {superpixels.shape}, the photo {image.height, image.width}", "ssr superpixels --force"
            )
        clip, dino = self.clip, self.dino
        grid = token_grid(image.height, image.width, clip.patch_size)
        clip_input = encoder_input(image, grid, clip.patch_size, clip.mean, clip.std)
        dino_input = encoder_input(image, grid, dino.patch_size, dino.mean, dino.std) if dino else torch.empty(0)
        on_grid = None
        if superpixels is not None:
            lab = mean_lab(np.asarray(image), superpixels) if colours else None
            on_grid = GridSuperpixels(token_membership(superpixels, grid), lab)
        return Photo(sample, grid, clip_input, dino_input, on_grid)

    def attention(self, photos: Sequence[Photo]) -> tuple[Tensor | None, Tensor | None]:
        """CLIP's and DINO's attention between patches, ``(B, N, N)`` each, or None for an encoder that is left out."""
        clip_attention = dino_attention = None
        if self._clip_blocks:
            clip_attention = self.clip.encode(torch.stack([p.clip_input for p in photos]), self._clip_blocks).attention
        if self.dino is not None:
            dino_attention = self.dino.encode(torch.stack([p.dino_input for p in photos]), self._dino_blocks).attention
        return clip_attention, dino_attention


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


def run(workspace: Workspace, options: RefineOptions, progress: Progress | None = None) -> Counts:
    """Refine the CAMs of a work directory and make its pseudo-masks.

    Args:
        workspace: Where images, CAMs and superpixels come from and masks go.
        options: Affinity, masks, background rule, CRF.
        progress: Told about each mask.

    Returns:
        Masks done, skipped and failed.

    Raises:
        UsageError: Made with other options before, and ``workspace.force`` is off.
        SsrError: No CAMs, or no superpixels although they are asked for.
        TooManyFailures: More bad images than allowed; what was computed is kept.
    """
    return run_targets(workspace, [Target(options, workspace.work)], progress)[0]


def run_targets(workspace: Workspace, targets: Sequence[Target], progress: Progress | None = None) -> list[Counts]:
    """Like `run` for several sets of options in one pass of the encoders.

    Args:
        workspace: Where images, CAMs and superpixels come from.
        targets: Sets of options with equal ``clip_blocks`` and ``dino_blocks``, or 0, or a ``dino_weight`` of 0 or 1.
        progress: Told about each mask.

    Returns:
        Counts of each target.
    """
    progress = progress or Silent()
    device = resolve_device(workspace.run.device)
    clip_weights = resolve_clip(workspace.clip.model, workspace.clip.pretrained)
    needs_dino = any(_uses_dino(target.options) for target in targets)
    dino_weights = resolve_dino(workspace.dino.model, workspace.dino.pretrained) if needs_dino else None
    shared = _shared_encoder_options(targets)
    with ExitStack() as stack:
        jobs = [
            stack.enter_context(_TargetJob(workspace, target, clip_weights, dino_weights, stack, progress))
            for target in targets
        ]
        total = len(workspace.dataset.samples) * len(jobs)
        progress.start("refine", total, sum(job.counts.skipped for job in jobs))
        wanted = [s for s in workspace.dataset.samples if any(s.image_id in job.unrefined for job in jobs)]
        if wanted:
            dtype = resolve_dtype(workspace.run.precision, device)
            clip = ClipEncoder(build_clip(clip_weights), device, dtype)
            maker = AttentionMaker(clip, DinoEncoder(dino_weights, device, dtype) if dino_weights else None, shared)
            inputs = stack.enter_context(_Inputs(workspace, targets))
            for photos in batches_by(
                _decoded(maker, wanted, jobs, inputs), lambda photo: photo.grid, resolve_batch_size(workspace.run, device)
            ):
                clip_attention, dino_attention = maker.attention(photos)
                for index, photo in enumerate(photos):
                    _refine_one(
                        photo, inputs, jobs,
                        None if clip_attention is None else clip_attention[index],
                        None if dino_attention is None else dino_attention[index],
                    )  # fmt: skip
        for job in jobs:
            job.make_missing_masks()
        progress.finish()
        return [job.finish() for job in jobs]


def _uses_dino(options: RefineOptions) -> bool:
    return options.dino_blocks > 0 and options.dino_weight > 0


def _uses_clip(options: RefineOptions) -> bool:
    return options.clip_blocks > 0 and options.dino_weight < 1


def _uses_superpixels(options: RefineOptions) -> bool:
    return options.superpixel_mask in {"gate", "colour"}


def _shared_encoder_options(targets: Sequence[Target]) -> RefineOptions:
    """One set of options whose encoder passes serve all targets."""
    clip = {t.options.clip_blocks for t in targets if _uses_clip(t.options)}
    dino = {t.options.dino_blocks for t in targets if _uses_dino(t.options)}
    if len(clip) > 1 or len(dino) > 1:
        raise UsageError(f"one pass has one clip_blocks and one dino_blocks, found {sorted(clip)} and {sorted(dino)}")
    for target in targets:
        if not _uses_clip(target.options) and not _uses_dino(target.options):
            raise UsageError(
                "no attention left: clip_blocks and dino_blocks are both unused", "--clip-blocks, --dino-blocks, --dino-weight"
            )
    return RefineOptions(clip_blocks=max(clip, default=0), dino_blocks=max(dino, default=0))


class _Inputs:
    """CAMs and superpixels of the work directory, opened once."""

    def __init__(self, workspace: Workspace, targets: Sequence[Target]) -> None:
        self.cams = ArrayReader(workspace.cams)
        self.superpixels = ArrayReader(workspace.superpixels) if any(_uses_superpixels(t.options) for t in targets) else None
        self.wants_colours = any(target.options.superpixel_mask == "colour" for target in targets)

    def cam(self, sample: Sample) -> Tensor:
        """``(K, h, w)`` fp32."""
        return torch.from_numpy(self.cams.read(sample.image_id)[0].astype(np.float32))

    def missing(self, sample: Sample) -> ImageError | None:
        """Why an image cannot be refined, or None."""
        if sample.image_id not in self.cams:
            return ImageError("it has no CAM", "run `ssr cams`")
        if self.cams.attributes(sample.image_id).get("labels") != list(sample.labels):
            return ImageError("its labels changed after its CAM was made", "run `ssr cams`")
        if self.superpixels is not None and sample.image_id not in self.superpixels:
            return ImageError("it has no superpixels", "run `ssr superpixels`")
        return None

    def __enter__(self) -> _Inputs:
        return self

    def __exit__(self, *_: object) -> None:
        self.cams.close()
        if self.superpixels is not None:
            self.superpixels.close()


def _decoded(maker: AttentionMaker, samples: list[Sample], jobs: list[_TargetJob], inputs: _Inputs) -> Iterator[Photo]:
    def load(sample: Sample) -> Photo:
        error = inputs.missing(sample)
        if error is not None:
            raise error
        superpixels = None if inputs.superpixels is None else inputs.superpixels.read(sample.image_id)[0]
        return maker.load(sample, superpixels, inputs.wants_colours)

    for sample, photo in prefetch(load, samples):
        if isinstance(photo, ImageError):
            for job in jobs:
                job.failed(sample.image_id, photo)
        else:
            yield photo


def _refine_one(
    photo: Photo, inputs: _Inputs, jobs: list[_TargetJob], clip_attention: Tensor | None, dino_attention: Tensor | None
) -> None:
    cam = inputs.cam(photo.sample)  # (K, h, w)
    if tuple(cam.shape[1:]) != photo.grid:
        raise SsrError(
            f"CAM of {photo.sample.image_id} is on grid {tuple(cam.shape[1:])}, the photo on {photo.grid}", "ssr cams --force"
        )
    device = next(a.device for a in (clip_attention, dino_attention) if a is not None)
    flat = cam.flatten(1).to(device)  # (K, N)
    for job in jobs:
        if photo.sample.image_id not in job.unrefined:
            continue
        options = job.target.options
        affinity = build_affinity(
            clip_attention if _uses_clip(options) else None, dino_attention if _uses_dino(options) else None, options
        )  # (N, N)
        mask = column_mask(flat, photo.grid, photo.superpixels, options)
        refined = refine_cam(flat, affinity, mask, options).view_as(cam)  # (K, h, w)
        job.refined(
            photo.sample, refined.cpu().numpy().astype(np.float16), inputs.cams.attributes(photo.sample.image_id)["size"]
        )


class _TargetJob:
    """One target during a run: its store, its masks, its counts."""

    def __init__(
        self, workspace: Workspace, target: Target, clip: Weights, dino: Weights | None, stack: ExitStack, progress: Progress
    ) -> None:
        self.target = target
        self._samples = workspace.dataset.samples
        self._progress = progress
        self._writer = stack.enter_context(ArrayWriter(target.refined))
        settings = _refined_settings(workspace, target.options, clip, dino)
        place = target.folder
        self._refined_manifest = workspace.settle(target.refined, STAGE, settings, self._writer.clear)
        masks = {**mask_settings(target.options), "refined": digest(settings)}
        self._mask_manifest = workspace.settle(target.masks, "masks", masks, partial(_remove_masks, target.masks))
        target.masks.mkdir(parents=True, exist_ok=True)
        remove_leftovers(target.masks)
        self.failures: Failures = workspace.failures(STAGE if place == workspace.work else f"{STAGE} {place.name}", progress)
        present = _refined_ids(target.refined, self._samples)
        self.unrefined = {s.image_id for s in self._samples} - present
        self._unmasked = ({s.image_id for s in self._samples} - written_masks(target.masks)) | self.unrefined
        self.counts = Counts(skipped=len(self._samples) - len(self._unmasked))
        self._makers = MaskMakers(target.options, resolve_workers(workspace.run.workers), self._mask_done)

    def refined(self, sample: Sample, cam: np.ndarray[Any, np.dtype[np.float16]], size: list[int]) -> None:
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
            _complete(manifest, output, self.counts)
        return self.counts

    def _submit(self, sample: Sample, cam: np.ndarray[Any, np.dtype[np.float16]], size: list[int]) -> None:
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

    def __enter__(self) -> _TargetJob:
        self._makers.__enter__()
        return self

    def __exit__(self, *details: Any) -> None:
        self._makers.__exit__(*details)


def _refined_settings(workspace: Workspace, options: RefineOptions, clip: Weights, dino: Weights | None) -> dict[str, Any]:
    settings = options.model_dump(mode="json", exclude=set(MASK_KEYS))
    settings["clip"] = clip.provenance() if _uses_clip(options) else None
    settings["dino"] = dino.provenance() if dino and _uses_dino(options) else None
    settings["cams"] = input_digest(workspace.cams, "ssr cams")
    if _uses_superpixels(options):
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


def _remove_masks(folder: Path) -> None:
    for path in folder.glob("*.png"):
        path.unlink()


def _complete(manifest: Manifest, output: Path, counts: Counts) -> None:
    manifest.counts, manifest.complete = counts.as_dict(), True
    manifest.write(output.with_suffix(".json"))
