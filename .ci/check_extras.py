"""Whether an installation does what its extras say: ``python .ci/check_extras.py vector onnx``, in the environment to check.

Every module that needs no extra is imported. Then each extra's feature is used: with the extra it works, without it the error
is ours and its hint is what to install.
"""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import pipelines
import ssr_cli
from pipelines.errors import SsrError

PARTS_OF_MMSEG = ("pipelines.mmsegmentation.",)  # each is imported after `import_mmsegmentation` has found it


def crf() -> None:
    """Refine the scores of a grey square."""
    from pipelines.ops.crf import CrfParameters, dense_crf

    dense_crf(np.zeros((8, 8, 3), np.uint8), np.full((2, 8, 8), 0.5, np.float32), CrfParameters(iterations=1))


def ray() -> None:
    """Start a cluster on this machine."""
    from pipelines.execution import ray_engine
    from pipelines.options.scale import ScaleOptions

    with ray_engine._cluster(ScaleOptions()):
        pass


def vector() -> None:
    """Outline a pixel."""
    from pipelines.ops.polygons import outlines

    outlines(np.eye(4, dtype=bool))


def onnx() -> None:
    """Write a network of one convolution and read it again."""
    from pipelines.models.onnx_file import read_onnx, write_onnx

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        write_onnx(path, torch.nn.Conv2d(3, 2, 8, 8).eval(), 8, {"classes": ["cat"], "supervision": "pseudo"})
        read_onnx(path).logits(torch.zeros(1, 3, 16, 16))


def mmseg() -> None:
    """Import mmsegmentation, then what stands on it."""
    from pipelines.mmsegmentation.imports import import_mmsegmentation

    import_mmsegmentation()
    for name in modules():
        if name.startswith(PARTS_OF_MMSEG):
            importlib.import_module(name)


FEATURES: dict[str, Callable[[], None]] = {"crf": crf, "ray": ray, "vector": vector, "onnx": onnx, "mmseg": mmseg}


def modules() -> list[str]:
    """Names of all modules of the two packages."""
    packages = (pipelines, ssr_cli)
    found = [info.name for root in packages for info in pkgutil.walk_packages(root.__path__, f"{root.__name__}.")]
    return [name for name in found if not name.endswith("__main__")]


def check(installed: set[str]) -> None:
    """Raises an error for the first thing that is not as it should be."""
    for name in modules():
        if not name.startswith(PARTS_OF_MMSEG):
            importlib.import_module(name)
    subprocess.run([sys.executable, "-m", "ssr_cli", "--help"], check=True, stdout=subprocess.DEVNULL)
    for extra, use in FEATURES.items():
        try:
            use()
        except SsrError as error:
            hint = f"{error}; {error.hint}"
            assert extra not in installed, f"{extra} is installed: {hint}"
            assert f"ssr-wsss[{extra}]" in hint, f"the hint does not name ssr-wsss[{extra}]: {hint}"
        else:
            assert extra in installed, f"{extra} works without its packages"
    print(f"extras {sorted(installed) or 'none'}: as they should be")


if __name__ == "__main__":
    check(set(sys.argv[1:]))
