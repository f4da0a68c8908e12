"""Extensible tables: a part that the package lacks comes from a module named in ``SSR_PLUGINS``.

A table is a dict from a name to a part. A plugin is an importable module that adds entries when it is imported; worker
processes inherit the environment and import it again when they look for its part.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.metadata
import os
from collections.abc import Mapping
from typing import TypeVar

from pipelines.errors import UsageError

VARIABLE = "SSR_PLUGINS"
"""Environment variable with module names, separated by commas."""

GROUP = "ssr.plugins"
"""Entry-point group of installed plugins; its values are modules."""

Part = TypeVar("Part")


def table_entry(table: Mapping[str, Part], name: str, what: str, flag: str) -> Part:
    """Return a part from a table; plugins are imported if the table lacks it.

    Args:
        table: Parts by name.
        name: Name of the part.
        what: What the table holds, in the singular: ``dataset kind``.
        flag: Flag that gave the name.

    Raises:
        UsageError: No such part, or a plugin that cannot be imported.
    """
    if name not in table:
        load_plugins()
    if name not in table:
        close = difflib.get_close_matches(name[:80], table, n=1)
        near = f"; did you mean {close[0]!r}?" if close else ""
        known = ", ".join(table) or "nothing yet"
        raise UsageError(f"{flag}: no {what} {name!r:.80}: expected one of {known}{near}", f"{VARIABLE}=MODULE adds others")
    return table[name]


def load_plugins() -> None:
    """Import the modules of ``SSR_PLUGINS`` and of the entry-point group ``ssr.plugins``, once in each process.

    Raises:
        UsageError: A module cannot be imported.
    """
    _load(os.environ.get(VARIABLE, ""))


@functools.cache
def _load(named: str) -> None:
    modules = [(name, VARIABLE) for name in map(str.strip, named.split(",")) if name]
    modules += [(entry.module, f"entry point {entry.name}") for entry in importlib.metadata.entry_points(group=GROUP)]
    for name, source in modules:
        try:
            importlib.import_module(name)
        except Exception as error:  # a plugin can fail in any way
            reason = (str(error).strip().splitlines() or [""])[0][:160]
            raise UsageError(
                f"cannot import plugin {name!r:.80} of {source}: {type(error).__name__}: {reason}",
                f"{VARIABLE} takes module names, separated by commas; PYTHONPATH must hold their folder",
            ) from error
