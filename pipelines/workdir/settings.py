"""What a manifest compares: the settings that change an output."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipelines.encoders.class_embeddings import TextEmbeddings, TextSources
from pipelines.encoders.weights import Weights, file_sha256
from pipelines.errors import SsrError
from pipelines.execution.devices import precision_name
from pipelines.method.cam_extractor import uses_superpixels as cams_use_superpixels
from pipelines.method.label_maps import CRF_KEYS
from pipelines.method.refinement import uses_clip, uses_dino, uses_superpixels
from pipelines.options.stages import CamsOptions, RefineOptions
from pipelines.stores.array_reader import files_of
from pipelines.stores.array_store import store_exists
from pipelines.stores.manifest import read_manifest
from pipelines.workdir.workspace import Workspace

MASK_KEYS = ("background_power", "min_confidence", "crf", "crf_background_power", *CRF_KEYS)
"""Options that act after the propagation: changing them leaves the refined CAMs as they are."""


def input_digest(output: Path, command: str) -> str:
    """Digest of the settings that made a stage's input.

    Raises:
        SsrError: The input is not there.
    """
    manifest = read_manifest(output)
    if manifest is None and files_of(output):
        raise SsrError(f"{output} has no manifest: what made it is not known", f"`{command} --force` starts it over")
    if manifest is None or not store_exists(output):  # killed before the first image: a manifest alone
        raise SsrError(f"no {output.stem} in {output.parent}", f"run `{command}` first")
    return manifest.options_digest


def cam_settings(
    workspace: Workspace, options: CamsOptions, weights: Weights, text: TextSources | TextEmbeddings
) -> dict[str, Any]:
    """Whatever changes a CAM.

    Raises:
        SsrError: The options need superpixels and there are none.
    """
    unused = {"dense_weight", "dense_scale", "superpixel_share"} if options.readout == "gradcam" else set()
    of_heads = {name for name in CamsOptions.model_fields if name.startswith("aligned_")} | {
        "few_photos",
        "min_average_precision",
    }
    heads = None
    if options.ckpt is not None:
        heads = {"sha256": file_sha256(options.ckpt), **options.model_dump(mode="json", include=of_heads)}
    settings = {
        **options.model_dump(mode="json", exclude=unused | of_heads),
        "ckpt": heads,
        "clip": weights.provenance(),
        "text": text.provenance(),
        "precision": precision_name(workspace.run),
        "classes": list(workspace.dataset.classes.names),
    }
    if cams_use_superpixels(options):
        settings["superpixels"] = input_digest(workspace.superpixels, "ssr superpixels")
    return settings


def refinement_settings(workspace: Workspace, options: RefineOptions, clip: Weights, dino: Weights | None) -> dict[str, Any]:
    """Whatever changes a refined CAM, but for the CAM itself."""
    settings = options.model_dump(mode="json", exclude=set(MASK_KEYS))
    settings["clip"] = clip.provenance() if uses_clip(options) else None
    settings["dino"] = dino.provenance() if dino and uses_dino(options) else None
    settings["precision"] = precision_name(workspace.run)
    if uses_superpixels(options):
        settings["superpixels"] = input_digest(workspace.superpixels, "ssr superpixels")
    return settings


def mask_settings(options: RefineOptions) -> dict[str, Any]:
    """The options that change a mask once its refined CAM is given."""
    keys = MASK_KEYS if options.crf else [key for key in MASK_KEYS if not key.startswith("crf_")]
    return options.model_dump(mode="json", include=set(keys))
