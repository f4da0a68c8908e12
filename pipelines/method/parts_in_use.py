"""The parts that some options name, their needs of the evidence, and the options that change their result.

Needs decide which encoders run and which stores are opened; manifests compare the options in use.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, TypeVar, get_args

from pipelines.datasets.names import did_you_mean
from pipelines.errors import UsageError
from pipelines.method.affinity import AFFINITIES, Affinity
from pipelines.method.affinity_filters import AFFINITY_FILTERS, AffinityFilter
from pipelines.method.aligned import ALIGNED_READOUTS
from pipelines.method.column_masks import COLUMN_MASKS, ColumnMask, column_mask_names
from pipelines.method.evidence import Need, Needs, Part
from pipelines.method.readouts import READOUTS, Readout
from pipelines.options.sources import Options
from pipelines.options.stages import CamsOptions, RefineOptions
from pipelines.plugins import Table, table_entry

Entry = TypeVar("Entry", bound=Part[Any, Any])


def readout_of(options: CamsOptions) -> Part[Readout, CamsOptions]:
    """Return the entry of `READOUTS` that the options name."""
    return in_use(READOUTS, options.readout, "--readout", options)


def aligned_readout_of(options: CamsOptions) -> Part[Readout, CamsOptions]:
    """Return the entry of `ALIGNED_READOUTS` that the options name."""
    return in_use(ALIGNED_READOUTS, options.aligned_readout, "--aligned-readout", options)


def affinity_of(options: RefineOptions) -> Part[Affinity, RefineOptions]:
    """Return the entry of `AFFINITIES` that the options name."""
    return in_use(AFFINITIES, options.affinity, "--affinity", options)


def affinity_filters_of(options: RefineOptions) -> list[Part[AffinityFilter, RefineOptions]]:
    """Return the entry of `AFFINITY_FILTERS` that the options name, in a list; empty for ``none``."""
    name = options.affinity_filter
    return [] if name == "none" else [in_use(AFFINITY_FILTERS, name, "--affinity-filter", options)]


def column_masks_of(options: RefineOptions) -> list[Part[ColumnMask, RefineOptions]]:
    """Return the entries of `COLUMN_MASKS` that the options name; their product is taken."""
    return [in_use(COLUMN_MASKS, name, "--superpixel-mask", options) for name in column_mask_names(options)]


def in_use(table: Table[Entry], name: str, flag: str, options: CamsOptions | RefineOptions, *others: Options) -> Entry:
    """Return a part that knows its name.

    Args:
        table: Parts by name.
        name: Name of the part.
        flag: Flag that gave the name.
        options: The options by which the part says its needs.
        *others: Further options that it may name.

    Raises:
        UsageError: There is no such part, or it names options or fields of the evidence that do not exist.
    """
    part = replace(table_entry(table, name, flag), title=f"{table.what} {name!r}")
    keys = {key for section in (options, *others) for key in type(section).model_fields}
    for what, names, known in (
        ("option", part.options, keys),
        ("field of the evidence", part.needs(options), get_args(Need)),
    ):
        for unknown in sorted(set(names).difference(known)):
            raise UsageError(f"{part.title} names the {what} {unknown!r}, which does not exist{did_you_mean(unknown, known)}")
    return part


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
