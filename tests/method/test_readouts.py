"""ExCEL's and ResCLIP's read-outs against the papers' steps, one after the other, in the library's own modules."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.datasets.image import load_image
from pipelines.method.evidence import Evidence
from pipelines.method.readouts import READOUTS
from pipelines.options.stages import CamsOptions


def encoded(clip, name: str, *image_ids: str, **values: object) -> tuple[Evidence, CamsOptions, Tensor]:
    """Evidence of photos of one size, and what enters each block according to the model's own forward pass, block by block."""
    options = CamsOptions(readout=name, **values)
    extractor = clip.extractor(options)
    photos = []
    for image_id in image_ids:
        image = load_image(clip.samples[image_id].image_path)
        stripes = np.tile(np.arange(image.width) // 20, (image.height, 1))  # superpixels, where the read-out asks for them
        photos.append(extractor.load(clip.samples[image_id], stripes))
    evidence = extractor.encoders.encode(photos)
    x, inputs = clip.encoder.tower.embed(torch.stack([photo.inputs[0] for photo in photos])), []
    for block in clip.encoder.blocks:
        inputs.append(x)
        x = block(x)
    return evidence, options, torch.stack([*inputs, x])


def by_head(block, x: Tensor) -> list[Tensor]:
    """Queries, keys and values of one image ``(T, D)``, ``(heads, T, d)`` each."""
    attn, normed = block.attn, block.ln_1(x)
    packed = normed @ attn.in_proj_weight.T + attn.in_proj_bias
    return [part.view(len(x), attn.num_heads, -1).transpose(0, 1) for part in packed.chunk(3, dim=1)]


def second_path(clip, states: Tensor, blocks: int) -> Tensor:
    """ExCEL's second path through the last blocks, ``(T, D)``."""
    depth = len(clip.encoder.blocks)
    first = max(0, depth - blocks)
    x = states[first, 0]
    for index in range(first, depth):
        block = clip.encoder.blocks[index]
        query, key, value = by_head(block, states[index, 0])
        heads, _, width = value.shape
        weights = sum(  # one map for all heads
            (part[h] @ part[h].T / math.sqrt(width)).softmax(dim=1) for part in (query, key, value) for h in range(heads)
        )
        attended = torch.cat([weights / 3 @ value[h] for h in range(heads)], dim=1)  # (T, D)
        x = x + block.attn.out_proj(attended)
    return x


@pytest.mark.parametrize("blocks", [1, 3, 9])
@torch.no_grad()
def test_excel_is_the_written_steps(clip, blocks):
    evidence, options, states = encoded(clip, "excel", "b_trio", excel_blocks=blocks)
    found = READOUTS["excel"].call(evidence, options)
    model, x = clip.encoder.model, second_path(clip, states, blocks)
    features = model.ln_post(torch.cat([states[-1, 0, :1], x[1:]])) @ model.proj  # CLS of the model's own path
    features = features / features.norm(dim=0)  # over tokens: the authors' code
    text = clip.text.all
    likely = (2 * features[0] @ text.T).softmax(dim=0)
    products = torch.stack([features * name * weight for name, weight in zip(text, likely / likely.mean(), strict=True)])
    maps = (products - products.mean(dim=0)).sum(dim=2)[:, 1:]  # (C + M, N)
    torch.testing.assert_close(found, maps[list(evidence.labels[0])], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_calibrated_is_the_written_steps(clip):
    evidence, options, states = encoded(clip, "calibrated", "b_trio", excel_blocks=2, dense_weight=0.3, superpixel_share=0.4)
    found = READOUTS["calibrated"].call(evidence, options)
    model, block, labels = clip.encoder.model, clip.encoder.blocks[-1], list(evidence.labels[0])
    value = by_head(block, states[-2, 0])[2]  # (heads, T, d)
    own = block.attn.out_proj(value.transpose(0, 1).flatten(1))  # (T, D)
    expected = torch.zeros_like(found)
    for weight, tokens in (0.3, own[1:]), (0.7, second_path(clip, states, 2)[1:]):
        members = evidence.superpixels[0]  # (S, N)
        mean = torch.stack([(row / row.sum()) @ tokens if row.sum() else torch.zeros(tokens.shape[1]) for row in members])
        smooth = 0.6 * tokens + 0.4 * members.T @ mean
        features = F.normalize(model.ln_post(smooth) @ model.proj, dim=1)
        words = clip.text.all[[*labels, *range(20, len(clip.text.all))]]
        for row, probability in zip(expected, (50 * features @ words.T).softmax(dim=1).T, strict=False):  # classes come first
            row += weight * (probability - probability.min()) / (probability.max() - probability.min())
    least, most = expected.amin(dim=1, keepdim=True), expected.amax(dim=1, keepdim=True)
    torch.testing.assert_close(found, (expected - least) / (most - least), atol=2e-5, rtol=1e-4)


def feedback(labels: list[int], width: int) -> Tensor:
    """SFR's weights before smoothing, pair by pair and step by step along the line."""
    places = [divmod(index, width) for index in range(len(labels))]
    steps = max(len(labels) // width, width) - 1
    weights = torch.zeros(len(labels), len(labels))
    for i, one in enumerate(places):
        for j, other in enumerate(places):
            line = [
                tuple(math.floor((a * (steps - s) + b * s) / steps + 0.5) for a, b in zip(one, other, strict=True))
                for s in range(1, steps)
            ]
            left = any(labels[row * width + column] != labels[i] for row, column in line)
            away = max(abs(one[0] - other[0]), abs(one[1] - other[1]))
            weights[i, j] = (math.exp(-away / steps) if left else 1.0) * (labels[i] == labels[j])
    return weights


def smoothed(weights: Tensor) -> Tensor:
    taps = [math.exp(-((offset / 5) ** 2) / 2) for offset in range(-15, 16)]
    rows = torch.zeros_like(weights)
    for row, source in zip(rows, weights, strict=True):
        for n in range(len(row)):
            row[n] = sum(
                t / sum(taps) * source[n + o] for o, t in zip(range(-15, 16), taps, strict=True) if 0 <= n + o < len(row)
            )
    rows = rows / rows.sum(dim=1, keepdim=True)
    return rows / rows.max()


@pytest.mark.parametrize("values", [{}, {"resclip_feedback": 0.0, "resclip_share": 0.5}], ids=["two passes", "one pass"])
@torch.no_grad()
def test_resclip_is_the_written_steps(clip, values):
    evidence, options, states = encoded(clip, "resclip", "b_trio", dense_scale=40.0, **values)
    found = READOUTS["resclip"].call(evidence, options)
    (height, width), model, last = evidence.grid, clip.encoder.model, clip.encoder.blocks[-1]
    _, key, value = by_head(last, states[len(clip.encoder.blocks) - 1, 0])
    middle = [by_head(clip.encoder.blocks[2], states[2, 0])]  # blocks 6 to 9 of 12 are the third of four
    near = torch.zeros(1 + height * width, 1 + height * width)
    for i in range(height * width):
        for j in range(height * width):
            square = (i // width - j // width) ** 2 + (i % width - j % width) ** 2
            near[1 + i, 1 + j] = math.exp(-square / 50)

    def probabilities(alike: Tensor, factor: float, share: float) -> Tensor:
        heads = []
        for h in range(len(value)):
            scores = factor * ((1 - share) * key[h] @ key[h].T / math.sqrt(key.shape[2]) + share * alike) + near
            residual = torch.stack([(q[h] @ k[h].T / math.sqrt(k.shape[2])).softmax(dim=1) for q, k, _ in middle]).mean(dim=0)
            mixed = (1 - options.resclip_share) * scores.softmax(dim=1) + options.resclip_share * residual
            heads.append(2 * mixed @ value[h])
        tokens = last.attn.out_proj(torch.cat(heads, dim=1))[1:]
        features = F.normalize(model.ln_post(tokens) @ model.proj, dim=1)
        return (40 * features @ clip.text.all[[*evidence.labels[0], *range(20, len(clip.text.all))]].T).softmax(dim=1)

    count = len(evidence.labels[0])
    expected = probabilities(torch.zeros_like(near), 1.0, 0.0)
    if options.resclip_feedback:
        labels = [min(label, count) for label in expected.argmax(dim=1).tolist()]  # every background word is one label
        assert len(set(labels)) > 1
        alike = F.pad(smoothed(feedback(labels, width)), (1, 0, 1, 0))
        expected = probabilities(alike, 2.2, options.resclip_feedback)
    torch.testing.assert_close(found, expected[:, :count].T, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["excel", "calibrated", "resclip"])
def test_a_batch_is_its_photos_one_by_one(clip, name):
    ids = [image_id for image_id in clip.samples if clip.extractor(CamsOptions()).load(clip.samples[image_id]).grid == (3, 4)]
    assert len(ids) > 1
    evidence, options, _ = encoded(clip, name, *ids)
    alone = [READOUTS[name].call(*encoded(clip, name, image_id)[:2]) for image_id in ids]
    torch.testing.assert_close(READOUTS[name].call(evidence, options), torch.cat(alone), atol=1e-5, rtol=1e-4)
