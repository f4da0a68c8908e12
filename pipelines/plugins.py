"""Extensible tables: a part that the package lacks comes from a module named in ``SSR_PLUGINS``.

A `Table` maps names to parts. A plugin is an importable module that adds entries when it is imported; worker processes inherit
the environment and import it again when they look for its part.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.metadata
import os
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from pipelines.errors import SsrError, UsageError, is_out_of_memory

VARIABLE = "SSR_PLUGINS"
"""Environment variable with module names, separated by commas."""

GROUP = "ssr.plugins"
"""Entry-point group of installed plugins; its values are modules."""

Part = TypeVar("Part")
Result = TypeVar("Result")


class Table(dict[str, Part]):
    """Parts by name: those of the package, and those that plugins add, which may replace none of the package's.

    Args:
        what: What the table holds, in the singular: ``dataset kind``.
        kind: Type of the parts.
        parts: The parts of the package.

    Attributes:
        shipped: Names of the package's own parts.
    """

    def __init__(self, what: str, kind: type[Any], parts: Mapping[str, Part]) -> None:
        super().__init__(parts)
        self.what, self.shipped = what, frozenset(parts)
        self._kind = kind

    def __setitem__(self, name: str, part: Part) -> None:
        """Add a part.

        Raises:
            UsageError: The package has a part of this name, or the object is no part.
        """
        if name in self.shipped:
            raise UsageError(f"{self.what} {name!r} is in the package already", "choose another name")
        if not isinstance(part, self._kind):
            raise UsageError(f"{self.what} {name!r}: expected a {self._kind.__name__}(...), found a {type(part).__name__}")
        super().__setitem__(name, part)


def table_entry(table: Table[Part], name: str, flag: str) -> Part:
    """Return a part from a table; plugins are imported if the table lacks it.

    Args:
        table: Parts by name.
        name: Name of the part.
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
        raise UsageError(
            f"{flag}: no {table.what} {name!r:.80}: expected one of {known}{near}", f"{VARIABLE}=MODULE adds others"
        )
    return table[name]


def called(title: str, call: Callable[..., Result], *arguments: object) -> Result:
    """Call a part; an exception in the code of a plugin names the part.

    Args:
        title: The part, for the message: ``affinity 'mine'``.
        call: Function of the part.
        *arguments: Its arguments.

    Raises:
        SsrError: The code of a plugin raised another error than this one; one about memory passes, since it may be mended.
    """
    try:
        return call(*arguments)
    except SsrError:
        raise
    except Exception as error:
        if is_out_of_memory(error) or getattr(call, "__module__", "").partition(".")[0] == __package__:
            raise
        raise SsrError(f"{title} raised {_reason(error)}", "--debug shows where") from error


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
        except UsageError as error:  # of a `Table`
            raise UsageError(f"plugin {name!r:.80} of {source}: {error.message}", error.hint) from error
        except (Exception, SystemExit) as error:  # a plugin can fail in any way
            raise UsageError(
                f"cannot import plugin {name!r:.80} of {source}: {_reason(error)}",
                f"{VARIABLE} takes module names, separated by commas; PYTHONPATH must hold their folder",
            ) from error


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:160]}"
