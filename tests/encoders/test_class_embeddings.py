"""Embeddings are known by what made them, not by the last bits of their values."""

from __future__ import annotations

import dataclasses
import math
from itertools import combinations

import pytest
import torch
import torch.nn.functional as F

from pipelines.datasets.classes import VOC12
from pipelines.encoders import class_embeddings as embeddings
from pipelines.encoders.class_embeddings import text_embeddings, text_sources
from pipelines.encoders.super_classes import super_classes
from pipelines.encoders.text import encode_prompts, write_bank
from pipelines.encoders.weights import build_clip, resolve_clip
from pipelines.errors import UsageError
from pipelines.ops.text_enrichment import attribute_centres, enriched
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


def test_super_classes_are_prompts_or_means_of_their_members(clip, models):
    """A text tower reads their names; a bank that holds classes alone makes means. Both change what embeddings are known by."""
    names = ["vehicle", "animal", "household", "furniture", "person"]  # in the order of the classes
    for options in (ClipOptions(), ClipOptions(text_bank=models.voc_bank, background_bank=models.background_bank)):
        sources = text_sources(clip.weights, VOC12, options, supers=True)
        made = sources.embeddings(clip)
        members = [[index for index, own in enumerate(VOC12.supers) if own == name] for name in names]
        means = torch.stack([F.normalize(made.classes[own].mean(dim=0), dim=0) for own in members])
        prompts = encode_prompts(clip, names, names, VOC12.template).embeddings
        assert torch.allclose(made.supers, means if options.text_bank else prompts, atol=1e-6)
        without = text_sources(clip.weights, VOC12, options)
        assert without.embeddings(clip).supers is None
        assert sources.provenance() == without.provenance()  # CAMs are the same, whatever is asked for beside them
    other = text_sources(clip.weights, dataclasses.replace(VOC12, supers=()), options)
    assert other.super_provenance() != sources.super_provenance()


def test_attributes_enrich_classes_by_a_loop(clip, models, tmp_path):
    """ExCEL's t + softmax(t A) A without the tenth that a class resembles least; a file of sentences is as good as its bank."""
    sentences = [f"it has {word}" for word in VOC12.background]
    (tmp_path / "attributes.txt").write_text("\n".join([*sentences, "", sentences[0]]))
    write_bank(tmp_path / "bank.safetensors", encode_prompts(clip, sentences, sentences, "{}"))
    plain = text_embeddings(clip, VOC12, ClipOptions())
    rows = encode_prompts(clip, sentences, sentences, "{}").embeddings
    kept = len(rows) - len(rows) // 10
    expected = []
    for own in plain.classes:
        best = sorted(range(len(rows)), key=lambda row: float(own @ rows[row]), reverse=True)[:kept]
        odds = [math.exp(float(own @ rows[row])) for row in best]
        moved = own + sum(odd / sum(odds) * rows[row] for odd, row in zip(odds, best, strict=True))
        expected.append(moved / moved.norm())
    seen = {plain.provenance()["class_embeddings"]}
    for name in ("attributes.txt", "bank.safetensors"):
        found = text_embeddings(clip, VOC12, ClipOptions(attributes=tmp_path / name))
        assert torch.allclose(found.classes, torch.stack(expected), atol=1e-5)
        assert torch.equal(found.background, plain.background)
        seen.add(found.provenance()["class_embeddings"])
    few = text_embeddings(clip, VOC12, ClipOptions(attributes=tmp_path / "attributes.txt", attribute_centres=3))
    centres = attribute_centres(rows, 3)
    assert len(centres) == 3
    assert torch.allclose(few.classes, enriched(plain.classes, centres))
    assert len(seen | {few.provenance()["class_embeddings"]}) == 4
    distances = (rows[:, None] - centres).square().sum(dim=2)  # (A, 3)
    for place in range(3):  # each centre is the mean of the rows that are nearest to it
        assert torch.allclose(rows[distances.argmin(dim=1) == place].mean(dim=0), centres[place], atol=1e-4)


@pytest.mark.parametrize(("name", "said"), [("none.txt", "no attributes at .*none.txt"), ("empty.txt", "a sentence a line")])
def test_attributes_that_cannot_be_read_are_one_line(clip, tmp_path, name, said):
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(UsageError, match=rf"{said}.*--attributes"):
        text_embeddings(clip, VOC12, ClipOptions(attributes=tmp_path / name))


def test_classes_without_super_classes_are_clustered():
    """The nearest two clusters by mean cosine are joined until a fourth as many are left, numbered by their first members."""
    embeddings = F.normalize(torch.randn(20, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    found = super_classes(dataclasses.replace(VOC12, supers=()), embeddings)
    clusters = [[index] for index in range(20)]
    while len(clusters) > 5:
        pairs = combinations(range(len(clusters)), 2)
        a, b = max(pairs, key=lambda pair: float((embeddings[clusters[pair[0]]] @ embeddings[clusters[pair[1]]].T).mean()))
        clusters[a] += clusters.pop(b)
    clusters.sort(key=min)
    assert found.of_class == tuple(next(place for place, own in enumerate(clusters) if index in own) for index in range(20))
    assert found.described().startswith("super-classes by clustering: aeroplane")
    one = dataclasses.replace(VOC12, names=("cat",), prompts=("cat",), supers=(), aliases=())
    assert super_classes(one, embeddings[:1]).described() == "super-classes by clustering: cat (1)"
    assert super_classes(VOC12, embeddings).described().startswith("super-classes of the class list: vehicle (7), animal (6)")
