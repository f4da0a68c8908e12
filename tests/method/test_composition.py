"""The composition against the written formula, with explicit matrices."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.config import read_recipe
from pipelines.encoders.tower import Tail
from pipelines.errors import UsageError
from pipelines.method.affinity import AFFINITIES
from pipelines.method.composition import column_mask, refined_cams
from pipelines.method.evidence import Evidence, TextFeatures
from pipelines.method.parts_in_use import cam_needs, refine_needs
from pipelines.options.stages import CamsOptions, RefineOptions

SSR = RefineOptions(**read_recipe("ssr")["refine"])
CLIP_ES = RefineOptions(**read_recipe("clip-es")["refine"])
NO_BOX = CLIP_ES.model_copy(update={"box_mask": False})


def changed(options: RefineOptions, **values: object) -> RefineOptions:
    return options.model_copy(update=values)


def evidence(*labels: tuple[int, ...]) -> Evidence:
    """Random attention on a 3 x 4 grid; each token is a superpixel of its own, with a feature of its own."""
    draw, count = torch.Generator().manual_seed(1), len(labels)
    clip, dino = (torch.rand(count, 12, 12, generator=draw).softmax(-1) for _ in range(2))
    tokens = torch.eye(12).expand(count, -1, -1)
    return Evidence(
        (3, 4),
        labels,
        clip_attention=clip,
        dino_attention=dino,
        dino_tokens=tokens,
        superpixels=torch.eye(12).expand(count, -1, -1),
    )


def maps_of(batch: Evidence) -> Tensor:
    return torch.rand(sum(batch.counts), 12, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("labels", [((0, 3),), ((0, 3), (), (5,))], ids=["one image", "a batch"])
def test_refinement_is_the_written_formula(labels):
    """``(A o mask) (A o mask) ... cam`` for the recipe ssr: a token's vote and its cluster's are its own activation."""
    batch = evidence(*labels)
    cam = maps_of(batch)
    mask = column_mask(batch, cam, SSR)
    assert torch.equal(mask, cam > SSR.mask_threshold)
    affinity = (1 - SSR.dino_weight) * batch.clip_attention + SSR.dino_weight * batch.dino_attention  # (B, N, N)
    images = [index for index, count in enumerate(batch.counts) for _ in range(count)]
    expected = []
    for image, row, kept in zip(images, cam, mask, strict=True):
        masked = affinity[image] * kept[None, :]  # columns of sources that are left out
        spread = row
        for _ in range(SSR.power):
            spread = masked @ spread
        expected.append((spread - spread.min()) / (spread.max() - spread.min()))
    torch.testing.assert_close(refined_cams(batch, cam, SSR), torch.stack(expected), atol=1e-5, rtol=0)


@pytest.mark.parametrize("mask", ["gate", "cluster", "colour"])
def test_the_mask_of_an_image_does_not_depend_on_its_batch(mask):
    """Three images of 6, 3 and 5 superpixels and of 2, 0 and 1 classes, against each alone."""
    options = changed(SSR, superpixel_mask=mask, clusters=3, mask_threshold=0.3 if mask != "colour" else 0.1)
    labels, sizes, draw = ((0, 3), (), (5,)), (6, 3, 5), torch.Generator().manual_seed(2)
    batch = evidence(*labels)
    colours, tokens = torch.randn(3, 6, 3, generator=draw), torch.randn(3, 12, 4, generator=draw)
    membership = torch.rand(3, 6, 12, generator=draw) ** 4 * (torch.arange(6) < torch.tensor(sizes).unsqueeze(1)).unsqueeze(2)
    membership /= membership.sum(1, keepdim=True)
    cam = maps_of(batch)
    found = column_mask(batch.replacing(superpixels=membership, superpixel_colours=colours, dino_tokens=tokens), cam, options)
    alone = []
    for index, own in enumerate(batch.by_image(cam)):
        fields = {"dino_tokens": tokens[[index]]} | {
            name: values[[index], : sizes[index]]
            for name, values in {"superpixels": membership, "superpixel_colours": colours}.items()
        }
        alone.append(column_mask(evidence(labels[index]).replacing(**fields), own, options))
    assert torch.equal(found, torch.cat(alone))
    assert 0 < found.sum() < found.numel()


def test_masks_multiply():
    both, batch = RefineOptions(box_mask=True, superpixel_mask="token", mask_threshold=0.5), evidence((1, 2))
    cam = maps_of(batch)
    box, token = (column_mask(batch, cam, changed(both, **off)) for off in ({"superpixel_mask": "none"}, {"box_mask": False}))
    assert torch.equal(column_mask(batch, cam, both), box & token)
    assert column_mask(batch, cam, RefineOptions()) is None


def with_text(batch: Evidence, dtype: torch.dtype = torch.float32) -> Evidence:
    """The same with features that are the tokens themselves, or twice their square root, and names to compare them with."""
    draw = torch.Generator().manual_seed(5)
    tail = Tail(1, lambda x: x, lambda x, _: x, lambda x: 2 * x.sqrt(), lambda x: x)
    names = F.normalize(torch.rand(7, 8, generator=draw), dim=1).to(dtype)
    text = TextFeatures(names[:6], classes=4, logit_scale=100.0, supers=names[6:])
    tokens = torch.rand(len(batch.labels), 13, 8, generator=draw).to(dtype)
    attention = batch.clip_attention.to(dtype)
    return batch.replacing(tail=tail, tokens_cls=tokens, text=text, clip_attention=attention)


def entropy(p: Tensor) -> Tensor:
    return -(p * p.log()).sum(dim=-1)


@pytest.mark.parametrize(
    "values", [{}, {"cda_features": "output", "cda_scale": 3.0}, {"cda_product": "matrix", "cda_tau": 0.01}]
)
def test_class_distributions_weigh_the_affinity(values):
    """CD-CLIP's A_d = softmax((1 - JS) / tau) * A; classes and super-classes count, background words do not."""
    options = changed(NO_BOX, affinity_filter="cda", **values)
    batch = with_text(evidence((0, 3), (1,)), torch.float64)  # differences of entropies are small
    cam = maps_of(batch).double()
    names = torch.cat([batch.text.all[:4], batch.text.supers])  # (5, 8)
    expected = []
    for image, own in ((0, cam[:2]), (1, cam[2:])):
        tokens = batch.tokens_cls[image, 1:]
        features = 2 * tokens.sqrt() if options.cda_features == "value" else tokens
        cosine = F.normalize(features, dim=1) @ names.T  # (N, 5)
        low, high = cosine.amin(dim=0), cosine.amax(dim=0)
        p = (options.cda_scale * (cosine - low) / (high - low)).softmax(dim=1)
        js = entropy((p[:, None] + p[None]) / 2) - (entropy(p)[:, None] + entropy(p)[None]) / 2  # (N, N)
        tau = options.cda_tau or options.cda_kappa * float(js.flatten().sort().values[71])  # the lower of the middle two of 144
        weights = ((1 - js) / tau).softmax(dim=1)
        affinity = AFFINITIES[options.affinity].call(batch, options)[image]
        product = weights @ affinity if options.cda_product == "matrix" else weights * affinity
        product = product if options.cda_product == "matrix" else product / product.sum(dim=1, keepdim=True)
        spread = own @ product.T @ product.T
        low, high = spread.amin(dim=1, keepdim=True), spread.amax(dim=1, keepdim=True)
        expected.append((spread - low) / (high - low))
    torch.testing.assert_close(refined_cams(batch, cam, options), torch.cat(expected), atol=1e-8, rtol=0)


def test_padding_neither_gives_nor_takes():
    """Tokens that are padding are zero, and the others are as if the padding's activation had never been."""
    batch = with_text(evidence((0, 3), (1,)))
    valid = torch.arange(12).expand(2, 12) < 9
    cam = maps_of(batch)
    other_tokens = batch.tokens_cls.clone()
    other_tokens[:, 10:] = 5  # padding of another colour
    for options in (NO_BOX, changed(NO_BOX, affinity_filter="cda")):
        padded = refined_cams(batch.replacing(valid=valid), cam, options)
        other = batch.replacing(valid=valid, tokens_cls=other_tokens)
        torch.testing.assert_close(refined_cams(other, torch.where(valid[0], cam, 1.0), options), padded, atol=1e-5, rtol=0)
    assert not padded[:, 9:].any()
    assert padded[:, :9].amin(1).tolist() == [0, 0, 0]
    assert padded[:, :9].amax(1).tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("options", "needs"),
    [
        (SSR, {"clip_attention", "dino_attention", "dino_tokens", "superpixels"}),
        (CLIP_ES, {"clip_attention"}),
        (changed(SSR, superpixel_mask="gate", dino_weight=0.0), {"clip_attention", "superpixels"}),
        (changed(SSR, superpixel_mask="colour", clip_blocks=0), {"dino_attention", "superpixels", "superpixel_colours"}),
        (changed(SSR, superpixel_mask="token", dino_weight=1.0), {"dino_attention"}),
        (changed(CLIP_ES, affinity_filter="cda"), {"clip_attention", "tokens_cls", "text", "super_classes"}),
    ],
)
def test_needs_of_a_refinement_are_those_of_its_parts(options, needs):
    assert refine_needs(options) == needs


@pytest.mark.parametrize(
    ("values", "needs"),
    [
        ({}, {"tokens_cls", "text"}),
        ({"readout": "mix"}, {"tokens_cls", "text", "superpixels"}),
        ({"readout": "dense", "superpixel_share": 0.0}, {"tokens_cls", "text"}),
        ({"readout": "excel"}, {"tokens_cls", "clip_inputs", "text"}),
        ({"ckpt": "heads.safetensors", "aligned_superpixel_share": 0.0}, {"tokens_cls", "text", "alignment"}),
        ({"ckpt": "heads.safetensors", "aligned_readout": "mix"}, {"tokens_cls", "text", "alignment", "superpixels"}),
    ],
)
def test_needs_of_a_cam_are_those_of_its_readouts(values, needs):
    assert cam_needs(CamsOptions(**values)) == needs


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (RefineOptions(superpixel_mask="clusters"), "did you mean 'cluster'"),
        (RefineOptions(affinity="rows"), "did you mean 'row'"),
        (RefineOptions(affinity_filter="cd"), "did you mean 'cda'"),
        (RefineOptions(clip_blocks=0, dino_blocks=0), "no attention left"),
    ],
)
def test_unknown_parts_are_one_line(options, message):
    with pytest.raises(UsageError, match=message):
        refine_needs(options)


def test_a_part_that_does_not_name_its_needs_is_told_so():
    with pytest.raises(AttributeError, match=r"'tokens_cls'.*needs"):
        _ = evidence((1,)).tokens_cls
