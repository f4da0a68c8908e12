"""The import of mmsegmentation: checks of its parts, and a stand-in that lets it load with mmcv-lite."""

from __future__ import annotations

import importlib
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from types import ModuleType
from typing import Any, NoReturn

from packaging.version import Version

from pipelines.errors import SsrError

EXTENSION = "mmcv._ext"
INSTALL = 'pip install "ssr-wsss[mmseg]"'
WANTED = {
    # distributions, one of which is needed: lowest version, excluded version, requirement to install
    ("mmengine",): ("0.10", "1", "mmengine>=0.10.7,<1"),
    ("mmcv-lite", "mmcv"): ("2.0.0", "2.2.0", "mmcv-lite>=2.1,<2.2"),
    ("mmsegmentation",): ("1.2", "2", "mmsegmentation==1.2.2"),
}
"""mmsegmentation 1.2.2 refuses mmcv 2.2 with a message that asks for 2.0 or newer."""


def mmsegmentation_versions() -> dict[str, str]:
    """Return the versions of mmsegmentation and of the packages that it needs.

    Raises:
        SsrError: A part is missing or does not fit.
    """
    found: dict[str, str] = {}
    for names, (lowest, below, requirement) in WANTED.items():
        present = {name: installed for name in names if (installed := _installed(name))}
        if not present:
            raise SsrError(f"{names[0]} is not installed: `ssr retrain` and its models need it", INSTALL)
        for name, installed in present.items():
            if not Version(lowest) <= Version(installed) < Version(below):
                raise SsrError(
                    f"expected {name} from {lowest} to below {below}, found {installed}",
                    f'pip uninstall {name}; pip install "{requirement}"',
                )
        found.update(present)
    return found


def import_mmsegmentation() -> None:
    """Import mmseg's datasets, networks and runner, and add their types to mmengine's registries.

    mmcv-lite has no compiled operators, but four modules of mmseg import ``mmcv.ops`` anyway. If the extension is missing, a
    stand-in replaces it while ``mmcv.ops`` is imported, and is removed before mmengine looks for it. A call of an operator
    without the extension raises `SsrError`.

    Raises:
        SsrError: mmsegmentation is missing, or a part of it does not fit.
    """
    mmsegmentation_versions()
    if "mmcv.ops" not in sys.modules and find_spec(EXTENSION) is None:
        sys.modules[EXTENSION] = _StandIn(EXTENSION)
        try:
            importlib.import_module("mmcv.ops")
        finally:
            del sys.modules[EXTENSION]
    from mmseg.utils import register_all_modules

    register_all_modules(init_default_scope=True)


class _StandIn(ModuleType):
    """A module that has every operator; each of them raises an error when it is called."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def missing(*_: Any, **__: Any) -> NoReturn:
            raise SsrError(
                f"the network needs mmcv's compiled operator {name}, mmcv-lite has none", "another --model, or a build of mmcv"
            )

        return missing


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
