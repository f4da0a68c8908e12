"""A GPU makes the maps that the CPU makes, and trains. Skipped where there is none."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from tests.fixtures.maps import maps

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
GPU, CPU = "cuda", "cpu"


@pytest.mark.parametrize("recipe", ["ssr", "clip-es"])
def test_the_maps_of_the_cpu(recipe, tiny_voc, ssr, tmp_path):
    for place, device in (("gpu", GPU), ("cpu", CPU)):
        flags = ("--recipe", recipe, "--device", device, "--precision", "fp32", "--boundary", "par")
        ssr("masks", "--config", tiny_voc.config, "--work", tmp_path / place, *flags)
    for store in ("cams.h5", "refined.h5"):
        made, expected = maps(tmp_path / "gpu" / store), maps(tmp_path / "cpu" / store)
        assert made.keys() == expected.keys()
        for image_id, cam in expected.items():
            np.testing.assert_allclose(made[image_id], cam, atol=2e-3, rtol=0)
    for path in (tmp_path / "cpu/masks").glob("*.png"):
        same = np.asarray(Image.open(path)) == np.asarray(Image.open(tmp_path / "gpu/masks" / path.name))
        assert same.mean() > 0.98


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("views", [0, 1])
def test_trainings(precision, views, tiny_voc, ssr, tmp_path):
    where = ("--config", tiny_voc.config, "--work", tmp_path, "--device", GPU, "--precision", precision)
    ssr("superpixels", *where[:4])
    ssr("align", *where, "--iterations", 2)
    ssr("train", *where, "--ckpt", "auto", "--iterations", 2, "--cache-views", views)
    ssr("predict", *where)
    assert len(list((tmp_path / "predictions").rglob("*.png"))) == len(tiny_voc.ids)
