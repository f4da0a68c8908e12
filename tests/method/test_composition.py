"""The composition against the written formula, with explicit matrices."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pipelines.config import read_recipe
from pipelines.errors import UsageError
from pipelines.method.composition import column_mask, refined_cams
from pipelines.method.evidence import Evidence
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
        (3, 4), labels, clip_attention=clip, dino_attention=dino, dino_tokens=tokens, superpixels=(torch.eye(12),) * count
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


def test_masks_multiply():
    both, batch = RefineOptions(box_mask=True, superpixel_mask="token", mask_threshold=0.5), evidence((1, 2))
    cam = maps_of(batch)
    box, token = (column_mask(batch, cam, changed(both, **off)) for off in ({"superpixel_mask": "none"}, {"box_mask": False}))
    assert torch.equal(column_mask(batch, cam, both), box & token)
    assert column_mask(batch, cam, RefineOptions()) is None


def test_padding_neither_gives_nor_takes():
    """Tokens that are padding are zero, and the others are as if the padding's activation had never been."""
    batch = evidence((0, 3), (1,))
    valid = torch.arange(12).expand(2, 12) < 9
    cam = maps_of(batch)
    padded = refined_cams(batch.replacing(valid=valid), cam, NO_BOX)
    other = refined_cams(batch.replacing(valid=valid), torch.where(valid[0], cam, 1.0), NO_BOX)
    assert torch.equal(padded, other)
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
        (RefineOptions(clip_blocks=0, dino_blocks=0), "no attention left"),
    ],
)
def test_unknown_parts_are_one_line(options, message):
    with pytest.raises(UsageError, match=message):
        refine_needs(options)


def test_a_part_that_does_not_name_its_needs_is_told_so():
    with pytest.raises(AttributeError, match=r"'tokens_cls'.*needs"):
        _ = evidence((1,)).tokens_cls
