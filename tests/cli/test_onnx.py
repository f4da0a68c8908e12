"""``ssr onnx``: one file of any batch and size that equals torch, and that ``ssr predict`` runs without a CLIP.

Files of retrained networks are tested beside `ssr retrain`.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.encoders.clip import ClipEncoder
from pipelines.encoders.weights import build_clip, resolve_clip
from pipelines.errors import SsrError, UsageError
from pipelines.method.onnx_model import HalfStored
from pipelines.models import onnx_file
from pipelines.models.onnx_file import read_onnx, write_onnx
from pipelines.models.segmenter import read_segmenter

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.fixture(scope="module")
def work(tiny_voc, write_model, ssr, tmp_path_factory) -> Path:
    """A work directory with a model and its ONNX file."""
    work = tmp_path_factory.mktemp("onnx") / "work"
    ssr("superpixels", "--config", tiny_voc.config, "--work", work)
    write_model(work / "model.safetensors", supervision="corrected", text=True)  # read_onnx takes it as the other two
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
    joint = encoder.tail(tokens.grid).project(tokens.block_tokens[-1])
    expected = segmenter.decoder(tokens.block_tokens, tokens.grid, joint=joint)[0]
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


def test_half_precision_spares_vectors():
    """A variance of 1e-9 would be 0 in half precision."""
    norm = torch.nn.BatchNorm2d(4, eps=1e-12)
    norm.running_var.fill_(1e-9)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), norm).eval()
    stored = HalfStored(network)
    assert {tensor.dtype for tensor in stored.buffers() if tensor.dim() > 1} == {torch.float16}
    pixels = torch.rand(1, 3, 2, 2)
    torch.testing.assert_close(stored(pixels), network(pixels), rtol=1e-2, atol=1e2)  # values are about 1e5


def test_bad_input_is_one_line(work, ssr, tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    photos = ("--images", work, "--output", tmp_path / "out")
    assert "is not a readable ONNX file" in ssr("predict", *photos, "--model", tmp_path / "bad.onnx", code=2).err
    assert "ends in .onnx" in ssr("onnx", "--work", work, "--output", tmp_path / "x.bin", code=2).err
    none = ssr("onnx", "--work", work, "--model", "retrained", code=2).err
    assert f"no model at {work / 'retrained.safetensors'}" in none.replace("\n", "")
    assert "run `ssr retrain" in none


NOTE = {"classes": ["cat"], "supervision": "pseudo"}


def test_a_bad_size_in_the_note_is_one_line(tmp_path):
    path = tmp_path / "model.onnx"
    write_onnx(path, torch.nn.Conv2d(3, 2, 1).eval(), 1, {**NOTE, "largest": [64, 16]})
    assert read_onnx(path).largest == (64, 16)
    written = onnx.load(path)
    [entry] = [entry for entry in written.metadata_props if entry.key == onnx_file.NOTE]
    note = json.loads(entry.value)
    for largest in (None, 64, [64], [64, 0], ["64", "16"], [1 << 20, 16]):
        entry.value = json.dumps({**note, "largest": largest})
        onnx.save(written, path)
        with pytest.raises(UsageError, match=r"model\.onnx is damaged: its note is not that of a segmentation model"):
            read_onnx(path)


class Undecided(torch.nn.Module):
    """A network whose way depends on values."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels[:, :1] if pixels.sum() > 0 else pixels[:, :2]


class Fixed(torch.nn.Module):
    """A network that runs on the exporter's example alone."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.reshape(2, 3, 5, 7)


def test_what_cannot_be_written_is_one_line(tmp_path):
    with pytest.raises(SsrError, match=r"^torch's exporter cannot write this network as ONNX") as caught:
        write_onnx(tmp_path / "model.onnx", Undecided().eval(), 1, NOTE)
    assert str(caught.value).isprintable()
    assert not (tmp_path / "model.onnx").exists()


def test_what_does_not_run_is_one_line(tmp_path):
    write_onnx(tmp_path / "model.onnx", Fixed().eval(), 1, NOTE)
    model = read_onnx(tmp_path / "model.onnx")
    with pytest.raises(SsrError, match=r"^onnxruntime cannot run the model on 9 x 8 pixels") as caught:
        model.logits(torch.zeros(2, 3, 8, 9))
    assert str(caught.value).isprintable()


def test_a_file_that_computes_something_else_is_refused(work, ssr, monkeypatch):
    def write_another(path: Path, _: torch.nn.Module, patch: int, *rest: object) -> None:
        write_onnx(path, torch.nn.Conv2d(3, 21, patch, patch).eval(), patch, *rest)

    monkeypatch.setattr("pipelines.stages.onnx.write_onnx", write_another)
    said = ssr("onnx", "--work", work, "--compare", 1, "--output", work / "another.onnx", code=1).err
    assert "computes something else than torch" in said.replace("\n", " ")
