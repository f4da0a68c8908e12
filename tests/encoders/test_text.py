from __future__ import annotations

import dataclasses
from pathlib import Path

import open_clip
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from pipelines.encoders.class_embeddings import TextEmbeddings
from pipelines.encoders.similar_words import nearest_background, nearest_classes
from pipelines.encoders.text import TextBank, encode_prompts, read_bank, token_counts, write_bank
from pipelines.encoders.weights import LoadedClip
from pipelines.errors import SsrError, UsageError


def _bank(count: int = 3) -> TextBank:
    torch.manual_seed(0)
    names = tuple(f"class {i} é" for i in range(count))
    return TextBank(F.normalize(torch.randn(count, 8), dim=1), names, "ViT-B-16-quickgelu", "openai", "a {}.")


def _save(path: Path, embeddings: Tensor, metadata: dict[str, str] | None) -> Path:
    save_file({"embeddings": embeddings}, path, metadata)
    return path


def test_round_trip(tmp_path: Path) -> None:
    bank = _bank()
    strided = dataclasses.replace(bank, embeddings=bank.embeddings.T.contiguous().T)
    write_bank(tmp_path / "new" / "b.safetensors", strided)
    read = read_bank(tmp_path / "new" / "b.safetensors", "ViT-B-16-quickgelu")
    torch.testing.assert_close(read.embeddings, bank.embeddings)
    assert vars(read) | {"embeddings": None} == vars(bank) | {"embeddings": None}
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["b.safetensors"]


def test_half_precision_is_normalised_again(tmp_path: Path) -> None:
    path = _save(tmp_path / "b.safetensors", _bank().embeddings.half(), {"names": '["a", "b", "c"]'})
    read = read_bank(path, "any model")  # a bank that names no model fits all
    assert read.embeddings.dtype == torch.float32
    torch.testing.assert_close(read.embeddings.norm(dim=1), torch.ones(3))
    assert (read.model, read.pretrained, read.template) == ("", "", "")


@pytest.mark.parametrize("model", ["ViT-B-16", "ViT-L-14"])
def test_another_model(tmp_path: Path, model: str) -> None:
    write_bank(tmp_path / "b.safetensors", _bank())
    with pytest.raises(UsageError, match=f"was made by ViT-B-16-quickgelu, the CLIP here is {model} .*--text-bank"):
        read_bank(tmp_path / "b.safetensors", model)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no text bank at"):
        read_bank(tmp_path / "b.safetensors")


def test_prompts_go_through_the_text_tower(tiny_clip: LoadedClip) -> None:
    bank = encode_prompts(tiny_clip, ["cat", "dog"], ["cat, kitten", "dog"], "a clean origami {}.")
    tokenizer = open_clip.get_tokenizer("tiny-clip-quickgelu")
    with torch.no_grad():
        raw = tiny_clip.model.encode_text(tokenizer(["a clean origami cat, kitten.", "a clean origami dog."]))
    torch.testing.assert_close(bank.embeddings, raw / raw.norm(dim=1, keepdim=True))
    assert bank.names == ("cat", "dog")
    assert (bank.model, bank.template) == ("tiny-clip-quickgelu", "a clean origami {}.")


def test_no_text_tower_no_prompts(tiny_clip: LoadedClip) -> None:
    with pytest.raises(UsageError, match=r"image tower alone: .*--text-bank"):
        encode_prompts(dataclasses.replace(tiny_clip, has_text=False), ["a"], ["a"], "{}")


def test_a_tokenizer_that_cannot_be_had(tiny_clip: LoadedClip, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: str) -> None:
        raise ModuleNotFoundError("No module named 'transformers'")

    monkeypatch.setattr(open_clip, "get_tokenizer", missing)
    with pytest.raises(SsrError, match=r"tokenizer of tiny-clip-quickgelu: No module named 'transformers' \(pip install"):
        encode_prompts(tiny_clip, ["a"], ["a"], "{}")


def test_prompts_that_are_one_to_the_text_tower_are_refused(tiny_clip: LoadedClip) -> None:
    """This tower reads 8 tokens."""
    long = "a b c d e f g h"
    with pytest.raises(UsageError, match=r"'cat' and 'dog' are the same up to the last of 8 tokens .*differ early"):
        encode_prompts(tiny_clip, ["cat", "dog"], [f"{long} cat", f"{long} dog"], "{}")
    counts, length = token_counts(tiny_clip, [f"{long} cat", "dog"], "{}")
    assert (counts, length) == ([11, 3], 8)


def test_the_nearest_words_are_found() -> None:
    rows = F.normalize(torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.1, 1.0, 0.0]]), dim=1)
    text = TextEmbeddings(rows, F.normalize(torch.tensor([[1.0, 0.0, 0.2]]), dim=1), ("sky",), ("", ""))
    assert str(nearest_background(text, ("a", "b", "c"))) == "a / sky (0.98)"
    assert str(nearest_classes(text, ("a", "b", "c"))) == "c / b (1.00)"
    assert nearest_classes(dataclasses.replace(text, classes=rows[:1]), ("a",)) is None
    assert nearest_background(dataclasses.replace(text, background=rows[:0], background_names=()), ("a", "b", "c")) is None
