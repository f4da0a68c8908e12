"""The parts that some options name, their needs of the evidence, and the options that change their result.

Needs decide which encoders run and which stores are opened; manifests compare the options in use.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pipelines.method.affinity import AFFINITIES, Affinity
from pipelines.method.affinity_filters import AFFINITY_FILTERS, AffinityFilter
from pipelines.method.aligned import ALIGNED_READOUTS
from pipelines.method.column_masks import COLUMN_MASKS, ColumnMask, column_mask_names
from pipelines.method.evidence import Needs, Part
from pipelines.method.readouts import READOUTS, Readout
from pipelines.options.stages import CamsOptions, RefineOptions
from pipelines.plugins import table_entry


def readout_of(options: CamsOptions) -> Part[Readout, CamsOptions]:
    """Return the entry of `READOUTS` that the options name."""
    return table_entry(READOUTS, options.readout, "read-out", "--readout")


def aligned_readout_of(options: CamsOptions) -> Part[Readout, CamsOptions]:
    """Return the entry of `ALIGNED_READOUTS` that the options name."""
    return table_entry(ALIGNED_READOUTS, options.aligned_readout, "aligned read-out", "--aligned-readout")


def affinity_of(options: RefineOptions) -> Part[Affinity, RefineOptions]:
    """Return the entry of `AFFINITIES` that the options name."""
    return table_entry(AFFINITIES, options.affinity, "affinity", "--affinity")


def affinity_filters_of(options: RefineOptions) -> list[Part[AffinityFilter, RefineOptions]]:
    """Return the entry of `AFFINITY_FILTERS` that the options name, in a list; empty for ``none``."""
    name = options.affinity_filter
    return [] if name == "none" else [table_entry(AFFINITY_FILTERS, name, "affinity filter", "--affinity-filter")]


def column_masks_of(options: RefineOptions) -> list[Part[ColumnMask, RefineOptions]]:
    """Return the entries of `COLUMN_MASKS` that the options name; their product is taken."""
    return [table_entry(COLUMN_MASKS, name, "column mask", "--superpixel-mask") for name in column_mask_names(options)]


def cam_needs(options: CamsOptions) -> Needs:
    """Return the fields of the evidence that `pipelines.method.composition.initial_cams` reads."""
    needs = readout_of(options).needs(options)
    return needs if options.ckpt is None else needs | aligned_readout_of(options).needs(options)


def refine_needs(options: RefineOptions) -> Needs:
    """Return the fields of the evidence that `pipelines.method.composition.refined_cams` reads, besides the maps.

    Raises:
        UsageError: The options leave no attention.
    """
    needs = affinity_of(options).needs(options)
    return needs.union(*(part.needs(options) for part in (*affinity_filters_of(options), *column_masks_of(options))))


def cam_values(options: CamsOptions) -> dict[str, Any]:
    """Return the options that change an initial CAM, as JSON holds them; those of the aligned read-out are under ``ckpt``."""
    values = _values(options, ("readout", *readout_of(options).options, "scales", "flip"))
    if options.ckpt is None:
        return {**values, "ckpt": None}
    names = ("aligned_readout", *aligned_readout_of(options).options, "few_photos", "min_average_precision")
    return {**values, "ckpt": _values(options, names)}


def refine_values(options: RefineOptions) -> dict[str, Any]:
    """Return the options that change a refined CAM, as JSON holds them."""
    names = {"affinity", "box_mask", "superpixel_mask", "power", "mask_every_step", *affinity_of(options).options}
    filters = affinity_filters_of(options)
    names |= {"affinity_filter"} if filters else set()  # without a filter the key is absent, as in manifests older than filters
    return _values(options, names.union(*(part.options for part in (*filters, *column_masks_of(options)))))


def _values(options: CamsOptions | RefineOptions, names: Iterable[str]) -> dict[str, Any]:
    return options.model_dump(mode="json", include=set(names))
