"""The settings that manifests compare, because they change an output."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pipelines.encoders.class_embeddings import text_sources
from pipelines.encoders.weights import resolve_clip, resolve_dino
from pipelines.errors import SsrError, UsageError
from pipelines.execution.devices import precision_name
from pipelines.method.boundary import label_map_values
from pipelines.method.evidence import CLIP_NEEDS, DINO_NEEDS, Needs
from pipelines.method.loading import Sources
from pipelines.method.parts_in_use import cam_needs, cam_values, refine_needs, refine_values
from pipelines.method.tagging import tag_values
from pipelines.options.sources import LONG_SIDE
from pipelines.options.stages import CamsOptions, RefineOptions
from pipelines.options.tag import TagOptions
from pipelines.stores.array_reader import files_of
from pipelines.stores.array_store import store_exists
from pipelines.stores.files import file_sha256
from pipelines.stores.manifest import read_manifest
from pipelines.workdir.commands import command_for
from pipelines.workdir.workspace import Workspace, oriented


def input_digest(output: Path, command: str) -> str:
    """Return the digest of the settings that made a stage's input.

    Raises:
        SsrError: The input does not exist.
    """
    manifest = read_manifest(output)
    if manifest is None and files_of(output):
        raise SsrError(
            f"{output} has no manifest: what made it is not known",
            f"`{command_for(output.parent, command)} --force` starts it over",
        )
    if manifest is None or not store_exists(output):  # a run killed before its first image leaves only a manifest
        raise SsrError(f"no {output.stem} in {output.parent}", f"run `{command_for(output.parent, command)}` first")
    return manifest.options_digest


def model_sources(workspace: Workspace, needs: Needs, alignment: Path | None = None) -> Sources:
    """Return the weights, banks and heads that some parts of the method need, without loading a model.

    Args:
        workspace: Work directory with ``[clip]``, ``[dino]`` and classes.
        needs: Needs of the parts in use.
        alignment: Alignment heads, or None.

    Raises:
        UsageError: Weights, a bank or alignment heads cannot be used.
    """
    if alignment is not None and not alignment.is_file():
        raise UsageError(f"no checkpoint at {alignment}", "--ckpt")
    clip = resolve_clip(workspace.clip.model, workspace.clip.pretrained)
    dino = resolve_dino(workspace.dino.model, workspace.dino.pretrained) if needs & DINO_NEEDS else None
    text = None
    if needs & {"text", "super_classes", "alignment"}:
        text = text_sources(clip, workspace.dataset.classes, workspace.clip, "super_classes" in needs)
    return Sources(clip, dino, text, alignment, workspace.dataset_options.long_side)


Digests = Mapping[str, str]
"""Digests of the settings of ``superpixels`` and ``cams`` that are made in the same run; others are read from disk."""


def cam_settings(
    workspace: Workspace, options: CamsOptions, sources: Sources, made_now: Digests = MappingProxyType({})
) -> dict[str, Any]:
    """Return all settings that change a CAM.

    Raises:
        SsrError: The options need superpixels, and there are none.
    """
    settings = cam_values(options) | {
        "clip": sources.clip.provenance(),
        "text": sources.text.provenance() if sources.text is not None else None,
        "precision": precision_name(workspace.run),
        "classes": list(workspace.dataset.classes.names),
    }
    settings |= _photo_settings(workspace)
    if options.ckpt is not None:
        settings["ckpt"] |= {"sha256": file_sha256(options.ckpt)}
    return settings | _superpixel_settings(workspace, cam_needs(options), made_now)


def tag_settings(workspace: Workspace, cams: CamsOptions, tags: TagOptions, sources: Sources) -> dict[str, Any]:
    """Return all settings that change the scores of classes, except superpixels that are computed in memory."""
    settings = tag_values(tags, cams) | {
        "clip": sources.clip.provenance(),
        "text": sources.text.provenance() if sources.text is not None else None,
        "precision": precision_name(workspace.run),
        "classes": list(workspace.dataset.classes.names),
    }
    heads = {} if sources.alignment is None else {"ckpt": {"sha256": file_sha256(sources.alignment)}}
    return settings | heads | _photo_settings(workspace)


def refinement_settings(
    workspace: Workspace, options: RefineOptions, sources: Sources, made_now: Digests = MappingProxyType({})
) -> dict[str, Any]:
    """Return all settings that change a refined CAM, except the CAM itself."""
    needs = refine_needs(options)
    settings = refine_values(options) | {
        "clip": sources.clip.provenance() if needs & CLIP_NEEDS else None,
        "dino": sources.dino.provenance() if sources.dino is not None and needs & DINO_NEEDS else None,
        "precision": precision_name(workspace.run),
    }
    settings |= _photo_settings(workspace)
    if sources.text is not None and "text" in needs:
        settings["text"] = sources.text.provenance()
    if sources.text is not None and "super_classes" in needs:
        settings["super_classes"] = sources.text.super_provenance()
    return settings | _superpixel_settings(workspace, needs, made_now)


def _photo_settings(workspace: Workspace) -> dict[str, Any]:
    """Return the settings by which images enter the encoders, where they differ from the defaults."""
    long_side = workspace.dataset_options.long_side
    return oriented(workspace) | ({"long_side": long_side} if long_side != LONG_SIDE else {})


def mask_settings(options: RefineOptions) -> dict[str, Any]:
    """Return the options that change a mask made from a given refined CAM and given class probabilities."""
    weight = () if options.probabilities is None else ("probability_weight",)
    return label_map_values(options, "background_power", "min_confidence", *weight)


def _superpixel_settings(workspace: Workspace, needs: Needs, made_now: Digests) -> dict[str, Any]:
    if "superpixels" not in needs:
        return {}
    return {"superpixels": made_now.get("superpixels") or input_digest(workspace.superpixels, "ssr superpixels")}
