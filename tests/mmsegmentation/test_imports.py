"""mmsegmentation is imported whole beside mmcv-lite, or one line says which part to install."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from importlib.util import find_spec

import pytest

from pipelines.errors import SsrError
from pipelines.mmsegmentation import imports
from pipelines.mmsegmentation.imports import import_mmsegmentation, mmsegmentation_versions

FITTING = {"mmengine": "0.10.7", "mmcv-lite": "2.1.0", "mmsegmentation": "1.2.2"}


@pytest.fixture
def install(monkeypatch):
    """Pretend that these distributions, name -> version, are all there are."""

    def pretend(found: dict[str, str]) -> None:
        def version(name: str) -> str:
            if name not in found:
                raise PackageNotFoundError(name)
            return found[name]

        monkeypatch.setattr(imports, "version", version)

    return pretend


@pytest.mark.parametrize(
    "found",
    [
        FITTING,
        {"mmengine": "0.10.7", "mmcv": "2.1.0", "mmsegmentation": "1.2.2"},
        {**FITTING, "mmcv": "2.0.0"},
        {**FITTING, "mmengine": "0.10", "mmcv-lite": "2.1.99"},
    ],
)
def test_versions_that_fit(install, found):
    install({**found, "numpy": "2.0"})
    assert mmsegmentation_versions() == found


@pytest.mark.parametrize("missing", FITTING)
def test_a_missing_part_is_named(install, missing):
    install({name: version for name, version in FITTING.items() if name != missing})
    with pytest.raises(SsrError, match=f"^{missing} is not installed") as caught:
        import_mmsegmentation()
    assert caught.value.hint == 'pip install "ssr-wsss[mmseg]"'


@pytest.mark.parametrize(
    ("name", "version", "expected", "mends"),
    [
        ("mmcv-lite", "2.2.0", "from 2.0.0 to below 2.2.0", "mmcv-lite>=2.1,<2.2"),
        ("mmcv-lite", "1.7.2", "from 2.0.0 to below 2.2.0", "mmcv-lite>=2.1,<2.2"),
        ("mmcv", "2.2.0", "from 2.0.0 to below 2.2.0", "mmcv-lite>=2.1,<2.2"),  # a good mmcv-lite beside it does not help
        ("mmcv", "1.7.2", "from 2.0.0 to below 2.2.0", "mmcv-lite>=2.1,<2.2"),
        ("mmengine", "0.9.1", "from 0.10 to below 1", "mmengine>=0.10.7,<1"),
        ("mmsegmentation", "1.1.2", "from 1.2 to below 2", "mmsegmentation==1.2.2"),
        ("mmsegmentation", "2.0", "from 1.2 to below 2", "mmsegmentation==1.2.2"),
    ],
)
def test_a_part_that_does_not_fit_is_named(install, name, version, expected, mends):
    install({**FITTING, name: version})
    with pytest.raises(SsrError) as caught:
        import_mmsegmentation()
    assert caught.value.message == f"expected {name} {expected}, found {version}"
    assert caught.value.hint == f'pip uninstall {name}; pip install "{mends}"'


IMPORTED = """\
import json, sys
import torch
from pipelines.errors import SsrError
from pipelines.mmsegmentation.imports import import_mmsegmentation

before = sorted(name for name in sys.modules if name.split(".")[0] in {"mmcv", "mmengine", "mmseg"})
import_mmsegmentation()
import_mmsegmentation()
from importlib.util import find_spec
from mmcv.ops import nms
from mmengine import DefaultScope
from mmseg.registry import DATASETS, METRICS, MODELS

try:
    nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
    said = None
except SsrError as error:
    said = str(error)
names = ["EncoderDecoder", "TIMMBackbone", "MixVisionTransformer", "DepthwiseSeparableASPPHead", "UPerHead", "SegformerHead"]
print(json.dumps({
    "before": before,
    "left": "mmcv._ext" in sys.modules,
    "found": find_spec("mmcv._ext") is not None,
    "missing": [name for name in names if MODELS.get(name) is None],
    "others": [DATASETS.get("BaseSegDataset").__name__, METRICS.get("IoUMetric").__name__],
    "scope": DefaultScope.get_current_instance().scope_name,
    "said": said,
}))
"""


def test_networks_are_there_and_the_stand_in_is_gone() -> None:
    pytest.importorskip("mmengine")
    if find_spec("mmcv._ext") is not None:
        pytest.skip("needs mmcv-lite: this mmcv has its operators")
    done = subprocess.run([sys.executable, "-c", IMPORTED], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "before": [],  # nothing of it is imported before it is asked for
        "left": False,
        "found": False,
        "missing": [],
        "others": ["BaseSegDataset", "IoUMetric"],
        "scope": "mmseg",
        "said": "the network needs mmcv's compiled operator nms, mmcv-lite has none (another --model, or a build of mmcv)",
    }
