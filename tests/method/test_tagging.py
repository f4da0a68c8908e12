"""Scores of classes: those of slow twins, whatever labels the photos have."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.errors import UsageError
from pipelines.method.tagging import TAGGERS, tag_scores, tag_values
from pipelines.options.stages import CamsOptions
from pipelines.options.tag import TagOptions
from tests.method.test_aligned import alignment

CAMS = CamsOptions(superpixel_share=0, aligned_superpixel_share=0, aligned_scale=26.0, few_photos=20.0)


def by_patch(features: Tensor, names: Tensor, scale: float, share: float) -> Tensor:
    """Mean over the best patches, class by class."""
    rows = torch.stack([(scale * names @ F.normalize(patch, dim=0)).softmax(0) for patch in features])  # (N, C + M)
    count = max(1, round(share * len(rows)))
    return torch.stack([torch.sort(column, descending=True).values[:count].mean() for column in rows.T])[:20]


@torch.no_grad()
def slow(clip, image_id: str, share: float) -> dict[str, Tensor]:
    """Scores of one photo in the library's own modules; heads are untrained: the identity."""
    extractor = clip.extractor(CAMS)
    photo = extractor.load(clip.samples[image_id])
    model, block = clip.encoder.model, clip.encoder.blocks[-1]
    tokens = clip.encoder.encode(photo.inputs[0][None]).tokens_cls
    out = model.ln_post(block(tokens)[0]) @ model.proj  # (1 + N, E)
    attn, normed = block.attn, block.ln_1(tokens[0, 1:])
    width = normed.shape[1]
    values = normed @ attn.in_proj_weight[2 * width :].T + attn.in_proj_bias[2 * width :]
    values = model.ln_post(attn.out_proj(values)) @ model.proj
    words, scale = clip.text.all, CAMS.dense_scale
    dense, heads = by_patch(values, words, scale, share), by_patch(out[1:], words, 26.0, share)
    pooled = (50 * words[:20] @ F.normalize(out[0], dim=0)).softmax(0)
    return {"dense": dense, "cls": pooled, "heads": heads}


@pytest.mark.parametrize(("tagger", "ckpt"), [("dense", False), ("cls", False), ("heads", True)])
@pytest.mark.parametrize("image_id", ["b_trio", "d_empty"])
def test_scores_are_those_of_a_slow_twin(clip, image_id, tagger, ckpt):
    made = alignment(photos=10**9) if ckpt else None
    extractor = clip.extractor(CAMS, made)
    evidence = extractor.encoders.encode([extractor.load(clip.samples[image_id])])
    cams = CAMS.model_copy(update={"ckpt": clip.options.text_bank if ckpt else None})
    for share in (0.01, 0.3, 1.0):
        scores = tag_scores(evidence, cams, TagOptions(tagger=tagger, best_share=share))
        assert scores.shape == (1, 20)
        torch.testing.assert_close(scores[0], slow(clip, image_id, share)[tagger], atol=2e-4, rtol=0)


def test_batches_and_labels_change_nothing_and_mean_lies_between(clip):
    cams = CAMS.model_copy(update={"ckpt": clip.options.text_bank})
    extractor = clip.extractor(CAMS, alignment(trained=True, photos=10**9))
    photos = [extractor.load(clip.samples[image_id]) for image_id in ("a_cat", "e_pair")]
    found = {}
    for tagger in ("dense", "heads", "mean"):
        options = TagOptions(tagger=tagger, best_share=1.0)
        both = tag_scores(extractor.encoders.encode(photos), cams, options)
        alone = torch.cat([tag_scores(extractor.encoders.encode([photo]), cams, options) for photo in photos])
        torch.testing.assert_close(both, alone, atol=1e-4, rtol=0)
        found[tagger] = both
    torch.testing.assert_close(found["mean"], (found["dense"] + found["heads"]) / 2, atol=1e-5, rtol=0)
    assert (found["dense"] - found["heads"]).abs().max() > 0.01


def test_auto_takes_what_is_there_and_heads_are_asked_for():
    assert tag_values(TagOptions(), CamsOptions())["tagger"] == "dense"
    assert tag_values(TagOptions(), CamsOptions(ckpt="h.safetensors"))["tagger"] == "heads"
    assert TAGGERS["dense"].default_threshold(2) == TAGGERS["dense"].default_threshold(20) == 0.65
    assert TAGGERS["dense"].default_threshold(80) == pytest.approx(0.21, abs=0.005)
    for name, tagger in TAGGERS.items():
        if "alignment" in tagger.needs(CAMS):
            with pytest.raises(UsageError, match=f"tagger {name} reads alignment heads, found none"):
                tag_values(TagOptions(tagger=name), CamsOptions())
    with pytest.raises(UsageError, match=r"no tagger 'dens'.*did you mean 'dense'"):
        tag_values(TagOptions(tagger="dens"), CamsOptions())
