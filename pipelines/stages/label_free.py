"""`ssr predict --model tags`: label maps of images from class names alone, or through alignment heads, without a trained model.

Each image is tagged, its tags are read out and refined, and the boundary refinement follows, in one pass of the encoders.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.datasets.folder import load_photos
from pipelines.datasets.unlabelled import class_list_of
from pipelines.errors import UsageError
from pipelines.execution.batches import batches_by
from pipelines.execution.devices import resolve_batch_size, resolve_device
from pipelines.execution.fitting import fitting
from pipelines.execution.label_map_workers import LabelMapWorkers, MaskJob
from pipelines.execution.pool import process_pool, resolve_workers
from pipelines.execution.progress import Progress, Silent
from pipelines.method.boundary import boundary_note, boundary_of
from pipelines.method.cam_extractor import one_pass_scales
from pipelines.method.encoders import Blocks, Encoders
from pipelines.method.label_free import LabelFree, label_free, label_free_needs
from pipelines.method.label_maps import make_mask, refuse_probabilities
from pipelines.method.loading import FrozenModels
from pipelines.method.photo import Photo, by_photo, shapes, too_large
from pipelines.models.alignment_file import FORMAT as HEADS
from pipelines.models.onnx_file import SUFFIX as ONNX
from pipelines.options.boundary import BoundaryOptions
from pipelines.options.stages import CamsOptions, RefineOptions, SuperpixelsOptions
from pipelines.options.tag import TagOptions
from pipelines.options.train import PredictOptions
from pipelines.stages.predict import STAGE, check_output, folder_of
from pipelines.stages.tag import unlabelled
from pipelines.stores.checkpoint import note_of
from pipelines.stores.manifest import digest
from pipelines.workdir.counts import Counts
from pipelines.workdir.photos import load_unstored
from pipelines.workdir.settings import cam_settings, mask_settings, model_sources, refinement_settings, tag_settings
from pipelines.workdir.thresholds import given_thresholds
from pipelines.workdir.workspace import Workspace

MODELS = ("tags", "heads")
"""Values of ``--model`` that name no file: plain CLIP, or the alignment heads of the work directory."""


def is_label_free(options: PredictOptions) -> bool:
    """Return whether ``--model`` names no segmentation model, but one of `MODELS` or a file of alignment heads."""
    if options.model.is_file():
        return options.model.suffix != ONNX and note_of(options.model, "--model").get("format") == HEADS
    return options.model.name in MODELS


def output_folder(workspace: Workspace, options: PredictOptions) -> Path:
    """Return the folder of the label maps: beside those of a model, with the suffix ``_tags``."""
    name = options.images.resolve().name if options.images else Path(workspace.dataset_options.split).stem
    return folder_of(options, workspace.predictions, f"{name}_tags")


def outputs(workspace: Workspace, options: PredictOptions, *_: object) -> tuple[Path, ...]:
    """Return the folders that `run` writes."""
    return (output_folder(workspace, options),)


def photos_of(workspace: Workspace, options: PredictOptions) -> Workspace:
    """Return the workspace with the images to predict, without labels; an image list that it has already is kept."""
    if workspace.photos or options.images is None:
        return unlabelled(workspace)
    classes = class_list_of(workspace.dataset_options)
    return replace(
        workspace,
        photos=replace(load_photos(options.images, classes.names, workspace.dataset_options.orient), classes=classes),
    )


def run(
    workspace: Workspace,
    options: PredictOptions,
    tags: TagOptions,
    superpixels: SuperpixelsOptions,
    cams: CamsOptions,
    refine: RefineOptions,
    progress: Progress | None = None,
) -> Counts:
    """Make the label map of every image that has none.

    Args:
        workspace: Names the images and the folder of the label maps.
        options: ``model``, images, and the given values of scales, flip, long side and boundary refinement, which override
            those of the sections ``cams``, ``dataset`` and ``refine``.
        tags: The tagger and its thresholds.
        superpixels: SLIC's options; superpixels are computed in memory.
        cams: Read-out.
        refine: Affinity, column masks, background rule.
        progress: Receives each image.

    Returns:
        Label maps done, skipped and failed.

    Raises:
        UsageError: There are no usable heads, or the folder was made with other options and ``workspace.force`` is off.
        TooManyFailures: There are more bad images than allowed; what was computed is kept.
    """
    progress, device = progress or Silent(), resolve_device(workspace.run.device)
    if options.probabilities:
        raise UsageError("--probabilities: only a trained model has them", "leave it out, or --model FILE of `ssr train`")
    refuse_probabilities(refine)
    workspace, cams, refine = _with_given(photos_of(workspace, options), options, cams, refine)
    needs = label_free_needs(tags, cams, refine)
    sources = model_sources(workspace, needs, cams.ckpt)
    thresholds = given_thresholds(workspace.dataset.classes.names, cams, tags)
    made_from = {"superpixels": digest(superpixels.model_dump(mode="json"))}
    settings: dict[str, Any] = {
        **mask_settings(refine),
        "supervision": "tags",
        "superpixels": made_from["superpixels"],
        "tag": tag_settings(workspace, cams, tags, sources) | {"thresholds": thresholds.tolist()},
        "cams": cam_settings(workspace, cams, sources, made_from),
        "refine": refinement_settings(workspace, refine, sources, made_from),
    }
    folder = output_folder(workspace, options)
    place = check_output(workspace, options, folder)

    @cache
    def encoders() -> Encoders:
        models = FrozenModels(sources, device, workspace.run.precision)
        return models.encoders(needs, Blocks(clip_attention=refine.clip_blocks, dino_attention=refine.dino_blocks), cams)

    def found_in(batch: Sequence[Photo]) -> LabelFree:
        return label_free(encoders(), batch, thresholds, tags, cams, refine)

    for words in (*workspace.dataset.passed_over, boundary_note(refine) or ""):
        if words:
            progress.note(words)
    workers = resolve_workers(workspace.run.workers)
    make, processes = partial(make_mask, options=refine, device=str(device)), boundary_of(refine).processes
    lock = folder.with_suffix(".h5")
    with (
        workspace.output(STAGE, folder, settings, progress, others=(lock,), prepare=encoders, place=place) as output,
        LabelMapWorkers(make, workers, output.made, processes=processes) as makers,
    ):
        todo = output.todo(lambda sample: output.holds(sample, folder))
        if todo:
            with process_pool(min(workers, len(workspace.samples))) as pool:
                load = partial(load_unstored, encoders(), pool, superpixels, scales=one_pass_scales(cams))
                batches = batches_by(output.photos(load, todo), shapes, resolve_batch_size(workspace.run, device))
                for made in fitting(found_in, batches, lambda photo: output.made(photo.sample.image_id, too_large(photo))):
                    _submit(makers, made, folder)
    return output.counts


def _submit(makers: LabelMapWorkers, made: LabelFree, folder: Path) -> None:
    maps: NDArray[np.float16] = made.refined.half().cpu().numpy()  # (T, h, w)
    for photo, own in zip(made.photos, by_photo(maps, made.photos), strict=True):
        sample, target = photo.sample, folder / f"{photo.sample.image_id}.png"
        job = MaskJob(sample.image_id, sample.image_path, own, sample.labels, photo.size, target, sample.orient, sample.photo)
        makers.submit(job)


def _with_given(
    workspace: Workspace, options: PredictOptions, cams: CamsOptions, refine: RefineOptions
) -> tuple[Workspace, CamsOptions, RefineOptions]:
    """Set heads, scales, long side and boundary refinement to the values of ``[predict]``, where it has them."""
    given = {name: getattr(options, name) for name in options.model_fields_set}
    heads = options.model if options.model.is_file() else workspace.checkpoint if options.model.name == "heads" else None
    cams = cams.model_copy(update={"ckpt": heads} | {name: given[name] for name in ("scales", "flip") if name in given})
    refine = refine.model_copy(update={name: value for name, value in given.items() if name in BoundaryOptions.model_fields})
    if "long_side" in given:
        dataset = workspace.dataset_options.model_copy(update={"long_side": given["long_side"]})
        workspace = replace(workspace, dataset_options=dataset)
    return workspace, cams, refine
