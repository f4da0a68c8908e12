"""Model files: round trip, and one clear line for every file that is none of ours."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from pipelines.datasets.classes import VOC12
from pipelines.encoders.weights import Weights, resolve_clip
from pipelines.errors import UsageError
from pipelines.models.decoder import SegmentationDecoder
from pipelines.models.segmenter import Segmenter, read_segmenter, write_segmenter
from pipelines.models.text_classifier import TextClassifier
from tests.fixtures.model_files import damages, rewritten

NAMES = ("cat", "dog", "bird")


@pytest.fixture(scope="module")
def weights(models) -> Weights:
    return resolve_clip("tiny-quickgelu", str(models.visual))


def text_of(classes: int = 3) -> TextClassifier:
    classifier = TextClassifier(8, 4, residual=True, classes=classes, words=2)
    torch.nn.init.normal_(classifier.text)
    return classifier


@pytest.fixture
def model(weights, tmp_path) -> Path:
    torch.manual_seed(0)
    decoder = SegmentationDecoder(blocks=3, width=48, classes=3, hidden=16, layers=2, heads=4, text=text_of())
    write_segmenter(tmp_path / "model.safetensors", Segmenter(decoder, 3, NAMES, "pseudo", 17), weights)
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize(("supervision", "text"), [("pseudo", True), ("masks", False)])
def test_round_trip(weights, tmp_path, supervision, text):
    torch.manual_seed(1)
    classifier = text_of() if text else None
    decoder = SegmentationDecoder(blocks=3, width=48, classes=3, hidden=16, layers=2, heads=4, text=classifier)
    path = tmp_path / "new/model.safetensors"
    write_segmenter(path, Segmenter(decoder, 3, NAMES, supervision, 17), weights)
    found = read_segmenter(path, weights)
    assert (found.blocks, found.classes, found.supervision, found.iteration) == (3, NAMES, supervision, 17)
    assert found.decoder.sizes == decoder.sizes
    assert not found.decoder.training
    assert not any(parameter.requires_grad for parameter in found.decoder.parameters())
    tokens, joint = torch.randn(3, 2, 6, 48), torch.randn(2, 6, 8) if text else None
    with torch.no_grad():
        assert torch.equal(found.decoder(tokens, (2, 3), joint=joint)[0], decoder.eval()(tokens, (2, 3), joint=joint)[0])


def test_the_file_holds_the_trained_parts_and_no_path(model, models, weights):
    with safe_open(model, framework="pt") as file:
        note = json.loads(file.metadata()["note"])
        assert set(file.keys()) == set(SegmentationDecoder(**note["sizes"], text=text_of()).state_dict())  # nothing of CLIP
    assert note["clip"] == weights.provenance()
    assert str(models.folder) not in json.dumps(note)
    assert model.stat().st_size < 150_000


NOTES, TENSORS = damages("fusion.weight")
NOTES |= {
    "no sizes": lambda note: note.pop("sizes"),
    "sizes are a list": lambda note: note.update(sizes=sorted(note["sizes"])),
    "sizes are a number": lambda note: note.update(sizes=3),
    "one size more": lambda note: note["sizes"].update(depth=3),
    "one size less": lambda note: note["sizes"].pop("heads"),
    "a size of text": lambda note: note["sizes"].update(hidden="16"),
    "a fraction": lambda note: note["sizes"].update(hidden=16.0),
    "a size below one": lambda note: note["sizes"].update(layers=0),
    "another size": lambda note: note["sizes"].update(hidden=32),
    "heads that do not divide": lambda note: note["sizes"].update(heads=3),
    "a huge size": lambda note: note["sizes"].update(hidden=10**12),
    "words are a list": lambda note: note.update(text=sorted(note["text"])),
    "no words": lambda note: note["text"].update(words=0),
    "words of other classes": lambda note: note["text"].update(classes=4),
    "no text": lambda note: note.pop("text"),
    "huge sizes within reason": lambda note: note["sizes"].update(hidden=4096, width=4096, blocks=64, layers=24),
}


TENSORS |= {
    "half precision": lambda tensors: tensors.update({"classifier.bias": torch.zeros(4).half()}),
    "whole numbers": lambda tensors: tensors.update({"classifier.bias": torch.zeros(4, dtype=torch.int64)}),
}


@pytest.mark.parametrize("case", [*NOTES, *TENSORS])
def test_a_damaged_model_is_one_line(model, weights, case):
    rewritten(model, NOTES.get(case), TENSORS.get(case))
    started = time.monotonic()
    with pytest.raises(UsageError, match=f"{model} is damaged: .*--model") as caught:
        read_segmenter(model, weights)
    assert "\n" not in str(caught.value)
    assert time.monotonic() - started < 10


def test_rewriting_alone_does_no_harm(model, weights):
    rewritten(model, None)
    assert read_segmenter(model, weights).iteration == 17


def of_format(name: str) -> Callable[[Path, Path], object]:
    return lambda path, _: rewritten(path, lambda note: note.update(format=name))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path, _: path.unlink(), "no checkpoint at"),
        (lambda path, _: path.write_text("no model"), "not a readable .safetensors file"),
        (lambda path, _: path.write_bytes(path.read_bytes()[:-1]), "not a readable .safetensors file"),
        (lambda path, folder: shutil.copy(folder / "visual.safetensors", path), "was not written by ssr"),
        (of_format("ssr alignment heads 2"), "does not hold a segmentation model .*`ssr train`"),
        (of_format("ssr segmentation decoder 2"), "does not hold a segmentation model"),
    ],
)
def test_another_file_is_one_line(model, models, weights, make, said):
    make(model, models.folder)
    with pytest.raises(UsageError, match=said) as caught:
        read_segmenter(model, weights, "--from")
    assert str(model) in str(caught.value)
    assert "--from" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_model_of_another_clip_is_one_line(model, models):
    with pytest.raises(UsageError, match=r"trained with another CLIP \(clip\..*--clip-model, --clip-pretrained") as caught:
        read_segmenter(model, resolve_clip("tiny-quickgelu", str(models.full)))
    assert "\n" not in str(caught.value)
    rewritten(model, lambda note: note.pop("clip"))
    with pytest.raises(UsageError, match="another CLIP"):
        read_segmenter(model, resolve_clip("tiny-quickgelu", str(models.visual)))


def test_model_of_the_fixture_is_for_voc(write_model, weights, tmp_path):
    assert read_segmenter(write_model(tmp_path / "m.safetensors"), weights).classes == VOC12.names
