"""Labels of crops: padding and the batch leave no trace; pixel-adaptive refinement and the filter as written by hand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.method.affinity import AFFINITIES
from pipelines.method.composition import column_mask, initial_cams
from pipelines.method.evidence import TextFeatures
from pipelines.method.online_labels import OnlineLabels
from pipelines.method.photo import Crop
from pipelines.ops.label_map import label_map, resize_maps, with_background
from pipelines.ops.par import pixel_adaptive_refinement
from pipelines.stages.train.inputs import TrainInputs
from tests.fixtures.crops import crops_of, options_of

# padding and batches


PADDED = {"crop": 96, "min_scale": 0.6, "max_scale": 1.1, "flip": True, "seed": 2}


@pytest.fixture
def padded(workspace, online) -> Callable[..., tuple[TrainInputs, OnlineLabels]]:
    """Photos of many sizes, smaller than their crops."""
    return lambda recipe="ssr", **train: online(workspace, options_of(recipe), **{**PADDED, **train})


@pytest.mark.parametrize("recipe", ["ssr", "clip-es"])
def test_a_crop_does_not_see_its_batch(padded, recipe):
    inputs, labels = padded(recipe)
    crops, encoded = crops_of(inputs, "b_trio", "d_empty", "e_pair")
    maps, found = labels.refined(crops, encoded), labels(crops, encoded).labels
    for index, crop in enumerate(crops):
        alone = inputs.encoders.encode([crop.photo])
        own = labels.refined([crop], alone)
        count = len(crop.photo.sample.labels)
        assert own.shape == (1, count, 36)
        torch.testing.assert_close(maps[index, :count], own[0], rtol=1e-3, atol=1e-4)
        assert not maps[index, count:].any()
        scores = with_background(resize_maps(own[0].view(count, 6, 6).numpy(), (96, 96)), 1.0)
        first, second = np.sort(np.concatenate([scores, np.zeros((1, 96, 96))]), axis=0)[[-1, -2]]
        differs = (labels([crop], alone).labels[0] != found[index]).numpy()
        assert not differs[first - second > 1e-3].any()
        assert differs.mean() < 0.1


@pytest.mark.parametrize("recipe", ["ssr", "cd-clip"])
def test_super_class_maps_are_those_of_each_crop_by_hand(padded, recipe):
    """From the super-classes that a photo's labels name, read out like classes; padding is unknown and takes no part."""
    inputs, labels = padded(recipe, losses={"sbe": 0.6})
    crops, encoded = crops_of(inputs, "b_trio", "d_empty", "e_pair")
    targets = labels(crops, encoded)
    text = inputs.encoders.text
    assert targets.super_of_class.tolist() == list(text.super_of_class)
    words = TextFeatures(torch.cat([text.supers, text.all[20:]]), len(text.supers), text.logit_scale)
    counts = []
    for crop, found in zip(crops, targets.super_maps, strict=True):
        named = sorted({text.super_of_class[label] for label in crop.photo.sample.labels})
        counts.append(len(named))
        valid, expected = labels.valid_tokens([crop])[0], torch.full_like(found, -1)
        if named:
            evidence = inputs.encoders.encode([crop.photo]).replacing(text=words, labels=(tuple(named),))
            photo = evidence.dino_tokens[0][valid] - evidence.dino_tokens[0][valid].mean(dim=0)  # (N', D)
            for place, cam in zip(named, initial_cams(evidence, labels.cams)[:, valid], strict=True):
                prototype = (cam[:, None] * photo).sum(dim=0)
                cosines = F.cosine_similarity(photo, prototype[None]).clamp_min(0)
                expected[place, valid] = (cosines - cosines.min()) / (cosines.max() - cosines.min())
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    assert {0, 2} <= set(counts)
    assert padded(recipe)[1](crops, encoded).super_maps is None


def refined_by_hand(inputs: TrainInputs, labels: OnlineLabels, crop: Crop, attention: Tensor | None = None) -> Tensor:
    """Refined CAMs ``(K, N)`` of one crop, with another attention of CLIP's if it is given."""
    options, evidence = labels.refine, inputs.encoders.encode([crop.photo])
    valid = labels.valid_tokens([crop])[0]
    if attention is not None:
        evidence = evidence.replacing(clip_attention=attention[None])
    cam = initial_cams(evidence, labels.cams) * valid
    affinity, mask = AFFINITIES[options.affinity].call(evidence, options)[0], column_mask(evidence, cam, options)
    mask = torch.ones_like(cam) if mask is None else mask
    for step in range(options.power):
        cam = (cam * mask if step == 0 or options.mask_every_step else cam) @ affinity.T
    if not len(cam):
        return cam
    inside = cam[:, valid]
    lowest, highest = inside.min(dim=1, keepdim=True).values, inside.max(dim=1, keepdim=True).values
    found = torch.zeros_like(cam)
    found[:, valid] = (inside - lowest) / (highest - lowest).clamp_min(1e-14)
    return found


@pytest.mark.parametrize("recipe", ["ssr", "clip-es", "no mask"])
@pytest.mark.parametrize("seed", [0, 2])
def test_padding_gives_and_takes_nothing(padded, recipe, seed):
    inputs, labels = padded(recipe, seed=seed)
    crops, encoded = crops_of(inputs)
    maps = labels.refined(crops, encoded)
    for crop, own in zip(crops, maps, strict=True):
        expected = refined_by_hand(inputs, labels, crop)
        torch.testing.assert_close(own[: len(expected)], expected, rtol=1e-3, atol=1e-4)


def test_every_map_fills_its_range_over_the_photo(padded):
    """Not over the padding: its zeros would lift everything else, and more of a padded photo would be foreground."""
    inputs, labels = padded("clip-es", min_scale=0.7, max_scale=0.7)
    crops, encoded = crops_of(inputs, "b_trio", "c_bird", "e_pair")
    valid = labels.valid_tokens(crops)
    assert not valid.all(dim=1).any()
    ranges = []
    for crop, own, photo in zip(crops, labels.refined(crops, encoded), valid, strict=True):
        ranges += [(cam.min().item(), cam.max().item()) for cam in own[: len(crop.photo.sample.labels), photo]]
    assert [low for low, _ in ranges] == [0] * 6
    highs = [high for _, high in ranges if high]  # a class whose mask is empty stays zero
    assert highs == pytest.approx([1] * len(highs))
    assert len(highs) > 3


def test_padding_is_ignored_and_nothing_else(padded):
    inputs, labels = padded()
    crops, encoded = crops_of(inputs)
    found = labels(crops, encoded).labels
    valid = torch.stack([crop.valid for crop in crops])
    assert torch.equal(found == 255, ~valid)
    assert 0.1 < valid.float().mean() < 0.9
    for crop, own in zip(crops, found, strict=True):
        assert set(own[crop.valid].unique().tolist()) <= {0, *(label + 1 for label in crop.photo.sample.labels)}
    maps = labels.refined(crops, encoded)
    tokens = labels.valid_tokens(crops)
    assert not maps[~tokens.unsqueeze(1).expand_as(maps)].any()
    assert ((maps >= 0) & (maps <= 1)).all()


@pytest.mark.parametrize("scale", [0.6, 0.75, 1.0, 1.3])
def test_a_token_is_valid_if_most_of_it_is_photo(padded, scale):
    inputs, labels = padded(min_scale=scale, max_scale=scale)
    crops, _ = crops_of(inputs)
    found = labels.valid_tokens(crops).view(-1, 6, 6)
    for crop, own in zip(crops, found, strict=True):
        for y in range(6):
            for x in range(6):
                patch = crop.valid[16 * y : 16 * y + 16, 16 * x : 16 * x + 16]
                assert bool(own[y, x]) == (2 * int(patch.sum()) > 256)
    assert found.any()
    assert not found.all()


def test_photos_without_classes_are_background(padded):
    inputs, labels = padded()
    for ids in (["d_empty"], ["d_empty", "d_empty"], ["a_cat", "d_empty"]):
        crops, encoded = crops_of(inputs, *ids)
        found = labels(crops, encoded).labels[-1]
        assert torch.equal(found, torch.where(crops[-1].valid, 0, 255))


@pytest.mark.parametrize("options", [{"par_iterations": 2}, {"par_iterations": 2, "par_scale": 0.5}, {"par_iterations": 0}])
def test_a_photo_without_a_class_is_background_with_refinement_too(padded, options):
    inputs, labels = padded(par_dilations=(1, 2), **options)
    crops, encoded = crops_of(inputs, "d_empty")
    assert torch.equal(labels(crops, encoded).labels[0], torch.where(crops[0].valid, 0, 255))


def test_a_crop_with_hardly_any_photo_is_finite(padded):
    """A few pixels fill no token."""
    inputs, labels = padded(min_scale=0.1, max_scale=0.1)
    crops, encoded = crops_of(inputs)
    assert not labels.valid_tokens(crops).any()
    found = labels(crops, encoded).labels
    assert torch.equal(found, torch.where(torch.stack([crop.valid for crop in crops]), 0, 255))


# pixel-adaptive refinement


def test_refinement_at_a_scale_that_leaves_a_pixel(padded):
    inputs, labels = padded(par_iterations=1, par_scale=0.001)
    crops, encoded = crops_of(inputs, "c_bird")
    assert len(labels(crops, encoded).labels[0][crops[0].valid].unique()) == 1


@pytest.mark.parametrize(("scale", "dilations"), [(1.0, (1, 3)), (0.5, (1, 2)), (0.3, (1, 1))])
def test_pixel_adaptive_refinement_of_the_scores(padded, scale, dilations):
    inputs, plain = padded(par_iterations=0)
    crops, encoded = crops_of(inputs, "b_trio", "c_bird", "d_empty")
    before = plain(crops, encoded).labels
    inputs, labels = padded(par_iterations=4, par_dilations=(1, 3), par_scale=scale)
    crops, encoded = crops_of(inputs, "b_trio", "c_bird", "d_empty")
    found, maps = labels(crops, encoded).labels, plain.refined(crops, encoded)
    side = round(96 * scale)
    for index, crop in enumerate(crops):
        own = crop.photo.sample.labels
        cam = F.interpolate(maps[index, : len(own)].view(1, -1, 6, 6), (side, side), mode="bilinear") if own else maps[:1, :0]
        scores = with_background(cam.reshape(len(own), side, side).numpy(), 1.0)
        image = F.interpolate(crop.image[None], (side, side), mode="bilinear")
        spread = pixel_adaptive_refinement(image, torch.from_numpy(scores)[None], dilations, 4)
        spread = F.interpolate(spread, (96, 96), mode="bilinear")[0].numpy()
        expected = np.where(crop.valid.numpy(), label_map(spread, own), 255)
        assert (found[index].numpy() == expected).mean() > 0.999
        assert set(found[index][crop.valid].unique().tolist()) <= {0, *(label + 1 for label in own)}
    assert 0.005 < (found != before).float().mean() < 0.5
    assert torch.equal(found == 255, before == 255)


# filter


def filtered_by_hand(blocks: Tensor, affinity: Tensor, valid: Tensor, difference: str) -> Tensor:
    """Attention of one crop: mean of the blocks that are near enough, times the decoder's affinity."""
    pairs = valid[:, None] & valid[None]
    gaps = [(affinity - block)[pairs] for block in blocks]
    scores = [float((gap.abs() if difference == "absolute" else gap).double().sum()) for gap in gaps]
    kept = [block for block, score in zip(blocks, scores, strict=True) if score <= sum(scores) / len(scores) + 1e-9]
    assert 0 < len(kept) < len(blocks)
    return sum(kept[1:], kept[0]) / len(kept) * affinity


@pytest.mark.parametrize("difference", ["signed", "absolute"])
@pytest.mark.parametrize("recipe", ["weclip", "ssr"])
def test_filter_by_the_decoders_affinity(padded, recipe, difference):
    inputs, labels = padded(recipe, filter_from=0, filter_blocks=3, filter_difference=difference)
    crops, encoded = crops_of(inputs, "b_trio", "c_bird", "e_pair")
    assert encoded.clip_block_attention.shape == (3, 3, 36, 36)
    features = torch.randn(3, 4, 36, generator=torch.Generator().manual_seed(1))
    affinity = (features.transpose(1, 2) @ features).sigmoid()
    found, unfiltered = labels.refined(crops, encoded, affinity), labels.refined(crops, encoded)
    assert (found - unfiltered).abs().max() > 0.05
    for index, crop in enumerate(crops):
        blocks = torch.cat([inputs.encoders.clip.encode(crop.photo.inputs[0][None], (block,)).attention for block in (1, 2, 3)])
        attention = filtered_by_hand(blocks, affinity[index], labels.valid_tokens(crops)[index], difference)
        expected = refined_by_hand(inputs, labels, crop, attention)
        torch.testing.assert_close(found[index, : len(expected)], expected, rtol=1e-3, atol=1e-4)


def test_filter_needs_each_blocks_attention(padded):
    inputs, labels = padded()
    crops, encoded = crops_of(inputs, "c_bird")
    with pytest.raises(AttributeError, match="clip_block_attention"):
        labels(crops, encoded, torch.rand(1, 36, 36))


def test_filter_has_no_say_where_clip_has_none(workspace, online):
    inputs, labels = online(workspace, options_of("ssr", clip_blocks=0, dino_weight=1.0), filter_from=0)
    crops, encoded = crops_of(inputs, "c_bird")
    filtered = labels(crops, encoded, torch.rand(1, 25, 25)).labels
    assert torch.equal(filtered, labels(crops, encoded).labels)
