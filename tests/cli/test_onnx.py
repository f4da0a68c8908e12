"""``ssr onnx``: one file of any batch and size that equals torch, and that ``ssr predict`` runs without a CLIP."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.encoders.clip import ClipEncoder
from pipelines.encoders.weights import build_clip, resolve_clip
from pipelines.models.onnx_file import read_onnx
from pipelines.models.segmenter import read_segmenter

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.fixture(scope="module")
def work(tiny_voc, write_model, ssr, tmp_path_factory) -> Path:
    """A work directory with a model and its ONNX file."""
    work = tmp_path_factory.mktemp("onnx") / "work"
    ssr("superpixels", "--config", tiny_voc.config, "--work", work)
    write_model(work / "model.safetensors", supervision="corrected")  # read_onnx takes it as the other two
    ran = ssr("onnx", "--work", work, "--compare", 3)
    assert "opset 18" in ran.out
    assert "100.0000% of the pixels have the same class" in ran.out
    assert "on 3 images" in ran.out
    return work


@pytest.mark.parametrize(("batch", "rows", "columns"), [(1, 1, 1), (1, 4, 4), (2, 3, 9), (3, 21, 15)])
def test_any_batch_and_size_equals_torch(work, models, batch, rows, columns):
    weights = resolve_clip("tiny-quickgelu", str(models.visual))
    encoder, segmenter = (
        ClipEncoder(build_clip(weights), torch.device("cpu")),
        read_segmenter(work / "model.safetensors", weights),
    )
    pixels = torch.rand(batch, 3, 16 * rows, 16 * columns, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (encoder.mean, encoder.std))
    tokens = encoder.encode((pixels - mean) / std, token_blocks=segmenter.blocks)
    expected = segmenter.decoder(tokens.block_tokens, tokens.grid)[0]
    found = read_onnx(work / "model.onnx").logits(pixels)
    assert found.shape == expected.shape == (batch, 21, rows, columns)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_predict_runs_it_without_a_clip(work, tiny_voc, ssr, tmp_path):
    ssr("predict", "--split", "val", "--work", work, "--precision", "fp32")
    photos = ("--images", tiny_voc.root / "JPEGImages", "--model", work / "model.onnx", "--output", tmp_path / "maps")
    ssr("predict", *photos, "--clip-pretrained", tmp_path / "nowhere.safetensors")
    compared = 0
    for path in (work / "predictions/val").glob("*.png"):
        with Image.open(path) as ours, Image.open(tmp_path / "maps" / path.name) as theirs:
            compared += 1
            assert np.array_equal(np.asarray(ours), np.asarray(theirs))
    assert compared == 2


def test_half_precision_is_half_the_size_and_nearly_equal(work, ssr):
    ran = ssr("onnx", "--work", work, "--fp16", "--output", work / "half.onnx", "--compare", 2)
    share = float(ran.out.split("at most, ")[1].split("%")[0])
    assert 98 < share <= 100
    assert (work / "half.onnx").stat().st_size < 0.8 * (work / "model.onnx").stat().st_size


def test_bad_input_is_one_line(work, ssr, tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    photos = ("--images", work, "--output", tmp_path / "out")
    assert "is not a readable ONNX file" in ssr("predict", *photos, "--model", tmp_path / "bad.onnx", code=2).err
    assert "ends in .onnx" in ssr("onnx", "--work", work, "--output", tmp_path / "x.bin", code=2).err
