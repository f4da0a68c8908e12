"""Embeddings are known by what made them, not by the last bits of their values."""

from __future__ import annotations

import dataclasses

import pytest

from pipelines.datasets.classes import VOC12
from pipelines.encoders import class_embeddings as embeddings
from pipelines.encoders.class_embeddings import text_embeddings
from pipelines.encoders.weights import build_clip, resolve_clip
from pipelines.options.sources import ClipOptions


@pytest.fixture
def clip(models):
    return build_clip(resolve_clip("tiny-quickgelu", str(models.full)))


def test_rounding_of_the_text_tower_does_not_make_other_embeddings(clip, monkeypatch):
    before = text_embeddings(clip, VOC12, ClipOptions())
    encode = embeddings.encode_prompts

    def elsewhere(*args):
        bank = encode(*args)
        return dataclasses.replace(bank, embeddings=bank.embeddings * (1 + 1e-7) + 1e-8)

    monkeypatch.setattr(embeddings, "encode_prompts", elsewhere)
    after = text_embeddings(clip, VOC12, ClipOptions())
    assert not before.classes.equal(after.classes)
    assert after.provenance() == before.provenance()


@pytest.mark.parametrize("change", [{"prompts": ("x", *VOC12.prompts[1:])}, {"template": "a photo of a {}."}])
def test_other_prompts_make_other_class_embeddings(clip, change):
    before = text_embeddings(clip, VOC12, ClipOptions()).provenance()
    after = text_embeddings(clip, dataclasses.replace(VOC12, **change), ClipOptions()).provenance()
    assert after["class_embeddings"] != before["class_embeddings"]


def test_a_bank_is_known_by_its_rows(clip, models):
    bank = text_embeddings(clip, VOC12, ClipOptions(text_bank=models.voc_bank, background_bank=models.background_bank))
    tower = text_embeddings(clip, VOC12, ClipOptions())
    assert bank.provenance() != tower.provenance()
    again = text_embeddings(clip, VOC12, ClipOptions(text_bank=models.voc_bank, background_bank=models.background_bank))
    assert bank.provenance() == again.provenance()
