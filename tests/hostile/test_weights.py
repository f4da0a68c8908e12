"""Text banks, checkpoints, models and frozen weights that are not what they claim."""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipelines.encoders.text import read_bank
from pipelines.encoders.weights import build_clip, build_dino, resolve_clip, resolve_dino
from pipelines.stores.checkpoint import note_of, read_checkpoint
from tests.fixtures.traps import Trap

TERA = 1 << 40
DEEP = "[" * 100_000


def raw(header: object, data: bytes = b"", size: int | None = None) -> bytes:
    """A safetensors file of any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + data


def tensor(shape: list[int], start: int, stop: int, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


READERS: dict[str, Callable[[Path], object]] = {
    "bank": read_bank,
    "checkpoint": lambda path: read_checkpoint(path, "--ckpt"),
    "clip": lambda path: build_clip(resolve_clip("tiny-quickgelu", str(path))),
    "dino": lambda path: build_dino(resolve_dino("test_vit", str(path))),
}
HEADERS = {
    # name: bytes of a file; no reader of safetensors may take it
    "empty": b"",
    "seven bytes": b"\0" * 7,
    "header of 2^63 bytes": raw({}, size=1 << 63),
    "header of 90 MB that is not there": raw({}, size=90_000_000),
    "header that is no json": raw(b"{" * 100),
    "deep header": raw(b'{"a":' * 50_000),
    "header that is no utf-8": raw(b'{"\xff": 1}'),
    "header as a list": raw([1, 2]),
    "2^40 elements without data": raw({"embeddings": tensor([TERA, 4], 0, 16 * TERA)}),
    "shape that overflows": raw({"embeddings": tensor([1 << 33, 1 << 33], 0, 4)}, bytes(4)),
    "negative shape": raw({"embeddings": tensor([-1, 4], 0, 16)}, bytes(16)),
    "offsets beyond the end": raw({"embeddings": tensor([2, 2], 0, 16)}, bytes(8)),
    "offsets backwards": raw({"embeddings": tensor([2, 2], 16, 0)}, bytes(16)),
    "tensors that overlap": raw({"embeddings": tensor([2, 2], 0, 16), "note": tensor([2, 2], 8, 24)}, bytes(24)),
    "unknown type": raw({"embeddings": tensor([2, 2], 0, 16, "PICKLE")}, bytes(16)),
    "garbage behind": raw({"embeddings": tensor([2, 2], 0, 16)}, bytes(99)),
    "metadata that is no text": raw({"__metadata__": {"names": ["a"], "note": {}}}),
    "text": b"version https://git-lfs.github.com/spec/v1\noid sha256:1234\n",
    "html": b"<!DOCTYPE html><html>404</html>",
}


@pytest.mark.parametrize("name", HEADERS)
@pytest.mark.parametrize("reader", ["bank", "checkpoint", "clip", "dino"])
def test_absurd_files_are_one_line(tmp_path, one_line, models, reader, name):
    path = tmp_path / "w.safetensors"
    path.write_bytes(HEADERS[name])
    assert str(path) in one_line(READERS[reader], path)


@pytest.mark.parametrize("form", ["pickle", "torch", "torch-legacy"])
@pytest.mark.parametrize("reader", ["bank", "checkpoint", "clip", "dino"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth", ".bin"])
def test_pickles_do_not_run(tmp_path, one_line, models, reader, form, suffix):
    path, touched = tmp_path / f"w{suffix}", tmp_path / "touched"
    content = {"embeddings": torch.zeros(2, 2), "note": Trap(touched)}
    match form:
        case "pickle":
            path.write_bytes(pickle.dumps(content, protocol=2))
        case "torch":
            torch.save(content, path)
        case _:
            torch.save(content, path, _use_new_zipfile_serialization=False)
    assert ("text bank" if reader == "bank" else "safetensors") in one_line(READERS[reader], path)
    assert not touched.exists()
    with path.open("rb") as file:  # the trap is live
        pickle.load(file) if form == "pickle" else torch.load(file, weights_only=False)
    assert touched.exists()


def bank(path: Path, names: str, rows: torch.Tensor | None = None) -> Path:
    save_file({"embeddings": torch.eye(2, 4) if rows is None else rows}, path, {"names": names})
    return path


BANKS = {
    "deep names": (DEEP, None),
    "number of 5,000 digits": ("[" + "9" * 5_000 + "]", None),
    "names as an object": ('{"a": 1, "b": 2}', None),
    "names of 1 MB": (json.dumps(["a" * 1_000_000, 3]), None),
    "doubled": ('["a", "a"]', None),
    "three names": ('["a", "b", "c"]', None),
    "NaN": ('["a", "b"]', torch.full((2, 4), torch.nan)),
    "infinite": ('["a", "b"]', torch.full((2, 4), torch.inf)),
    "infinite in fp32 alone": ('["a", "b"]', torch.full((2, 4), 1e200, dtype=torch.float64)),
    "zero rows": ('["a", "b"]', torch.zeros(2, 4)),
    "whole numbers": ('["a", "b"]', torch.eye(2, 4).long()),
    "truth values": ('["a", "b"]', torch.eye(2, 4).bool()),
    "complex": ('["a", "b"]', torch.eye(2, 4).cfloat()),
    "three axes": ('["a", "b"]', torch.eye(2).repeat(2, 1, 1)),
    "a scalar": ('["a"]', torch.tensor(1.0)),
    "no rows": ("[]", torch.zeros(0, 4)),
    "no columns": ('["a", "b"]', torch.zeros(2, 0)),
    "one axis": ('["a", "b"]', torch.ones(2)),
    "longer than one": ('["a", "b"]', torch.eye(2) * 1.1),
    "one name": ('["a"]', None),
    "names of no json": ("no json", None),
    "no names": ("", None),
    "a number as names": ("5", None),
    "null as names": ("null", None),
    "lists as names": ('[["a"], ["b"]]', None),
    "a number as a name": ('["1", 1]', None),
}


@pytest.mark.parametrize("name", BANKS)
def test_bad_banks_are_one_line(tmp_path, one_line, name):
    assert "b.safetensors" in one_line(read_bank, bank(tmp_path / "b.safetensors", *BANKS[name]))


NOTES = {
    "deep": DEEP,
    "number of 5,000 digits": '{"iteration": ' + "9" * 5_000 + "}",
    "no json": "{",
    "a list": "[1]",
    "null": "null",
    "empty": "",
}


@pytest.mark.parametrize("name", NOTES)
@pytest.mark.parametrize("read", [note_of, read_checkpoint])
def test_bad_notes_are_one_line(tmp_path, one_line, read, name):
    save_file({"w": torch.zeros(1)}, tmp_path / "c.safetensors", {"note": NOTES[name]})
    assert "--ckpt" in one_line(read, tmp_path / "c.safetensors", "--ckpt")


def bent(state: dict[str, torch.Tensor], how: str) -> dict[str, Any]:
    """Weights with one tensor changed, or one more."""
    key = next(name for name in state if name.endswith(("conv1.weight", "patch_embed.proj.weight")))
    old = state[key]
    changed: dict[str, Any] = {
        "missing": None,
        "transposed": old.transpose(0, 1).contiguous(),
        "one axis": old.flatten()[1:],
        "a scalar": torch.tensor(1.0),
        "no elements": torch.zeros(0),
        "NaN": old * torch.nan,
        "infinite in fp32 alone": old.double() * 1e300 + 1e300,
        "complex": old.cfloat(),
        "whole numbers": old.long(),
        "truth values": old.bool(),
        "sparse": old.flatten(1).to_sparse(),
        "meta": old.to("meta"),
        "quantised": torch.quantize_per_tensor(old, 0.1, 0, torch.qint8),
        "a list": old.tolist(),
        "text": "weights",
        "2^40 elements of four bytes": torch.zeros(1).expand(TERA),
    }
    return {name: changed[how] if name == key else value for name, value in state.items() if name != key or how != "missing"}


BENT = [
    "missing", "transposed", "one axis", "a scalar", "no elements", "NaN", "infinite in fp32 alone", "complex", "whole numbers",
    "truth values", "sparse", "meta", "quantised", "a list", "text", "2^40 elements of four bytes",
]  # fmt: skip


SAID = {"NaN": "NaN", "infinite in fp32 alone": "NaN or infinite", "transposed": "does not fit", "one axis": "does not fit"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", BENT)
@pytest.mark.parametrize("which", ["clip", "dino"])
def test_bent_weights_are_one_line(tmp_path, one_line, models, which, how):
    path = tmp_path / "w.pt"
    state = bent(load_file(models.visual if which == "clip" else models.dino), how)
    torch.save(state, path)
    assert SAID.get(how, "") in one_line(READERS[which], path)


@pytest.mark.parametrize("extra", [torch.full((3,), torch.nan), torch.zeros(1).expand(TERA), torch.zeros(3).cfloat()],
                         ids=["NaN", "2^40 elements of four bytes", "complex"])  # fmt: skip
def test_tensors_that_are_not_used_do_no_harm(tmp_path, models, extra):
    torch.save({**load_file(models.visual), "visual.extra": extra}, tmp_path / "w.pt")
    built = build_clip(resolve_clip("tiny-quickgelu", str(tmp_path / "w.pt")))
    assert torch.equal(built.model.visual.class_embedding, load_file(models.visual)["visual.class_embedding"])


@pytest.mark.parametrize("shape", [(), (1 << 20,), (3, 5)])
def test_a_tower_whose_class_embedding_is_odd(tmp_path, one_line, models, shape):
    torch.save({**load_file(models.visual), "visual.class_embedding": torch.zeros(shape)}, tmp_path / "w.pt")
    assert "does not fit" in one_line(lambda: build_clip(resolve_clip("tiny-quickgelu", str(tmp_path / "w.pt"))))


CLIP = {"embed_dim": 32, "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "patch_size": 8}, "text_cfg": {"layers": 1}}
CONFIGS = {
    "layers": {**CLIP, "vision_cfg": {**CLIP["vision_cfg"], "layers": 10**9}},
    "width": {**CLIP, "vision_cfg": {**CLIP["vision_cfg"], "width": 10**12}},
    "infinite": {**CLIP, "embed_dim": float("inf")},
    "not a number": {**CLIP, "embed_dim": float("nan")},
    "text tower of a hub": {**CLIP, "text_cfg": {"hf_model_name": "evil/model", "hf_tokenizer_name": "evil/model"}},
    "image tower of a hub": {**CLIP, "vision_cfg": {"timm_model_name": "hf-hub:evil/model"}},
    "sections as lists": {**CLIP, "vision_cfg": [1], "text_cfg": []},
    "text for numbers": {**CLIP, "embed_dim": "32"},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_model_descriptions_that_would_fill_the_memory_or_ask_a_hub(tmp_path, one_line, models, name):
    path = tmp_path / f"evil-{name.replace(' ', '-')}.json"
    path.write_text(json.dumps(CONFIGS[name]))
    one_line(lambda: build_clip(resolve_clip(str(path), str(models.visual))))


@pytest.mark.parametrize("content", [DEEP, '{"architecture": "test_vit", "model_args": {"depth": 1000000000}}',
                                     '{"architecture": "hf-hub:evil/model"}', '{"architecture": "../../etc/passwd"}',
                                     '{"architecture": "test_vit", "model_args": {"embed_dim": 1e30}}',
                                     '{"architecture": "test_vit", "pretrained_cfg": {"mean": "x", "std": [0]}}'],
                         ids=["deep", "depth", "hub", "path", "width", "statistics"])  # fmt: skip
def test_dino_descriptions(tmp_path, one_line, models, content):
    (tmp_path / "d.json").write_text(content)
    one_line(lambda: build_dino(resolve_dino(str(tmp_path / "d.json"), str(models.dino))))


def test_numpy_file_as_weights(tmp_path, one_line, models):
    np.save(tmp_path / "w.pt.npy", np.zeros(3))
    (tmp_path / "w.pt.npy").rename(tmp_path / "w.pt")
    one_line(lambda: build_clip(resolve_clip("tiny-quickgelu", str(tmp_path / "w.pt"))))
