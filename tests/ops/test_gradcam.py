from __future__ import annotations

from dataclasses import replace
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn

from pipelines.ops.gradcam import Features, Logits, cosine_logits, softmax_entries, softmax_gradcam
from pipelines.ops.scaling import min_max
from tests.fixtures.towers import LastBlock

WIDTH, JOINT, PATCHES, ENTRIES = 32, 16, 12, 6
PRESENT = torch.tensor([[1, 0, 0, 0, 1, 1], [1, 1, 0, 1, 1, 1], [0, 0, 0, 0, 1, 1]]).bool()
TARGETS = torch.tensor([[1, 0, 0, 0, 0, 0], [1, 1, 0, 1, 0, 0], [0, 0, 0, 0, 0, 0]]).bool()


@pytest.fixture(scope="module", params=[None, 0.3], ids=["plain", "layer_scale"])
def last_block(request: pytest.FixtureRequest) -> LastBlock:
    torch.manual_seed(0)
    block = ResidualAttentionBlock(WIDTH, 4, ls_init_value=request.param, act_layer=open_clip.transformer.QuickGELU).eval()
    ln_post = nn.LayerNorm(WIDTH)
    for norm in (block.ln_1, block.ln_2, ln_post):  # a fresh LayerNorm is all ones and zeros, which would hide mistakes
        nn.init.normal_(norm.weight, 1, 0.3)
        nn.init.normal_(norm.bias, 0, 0.3)
    nn.init.normal_(block.attn.in_proj_bias, 0, 0.3)
    return LastBlock(block, ln_post, torch.randn(WIDTH, JOINT))


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(3, PATCHES + 1, WIDTH)


def _cosine() -> Logits:
    torch.manual_seed(2)
    return cosine_logits(F.normalize(torch.randn(ENTRIES, JOINT), dim=1), 20.0)


def _head() -> Logits:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(JOINT, 8), nn.Tanh(), nn.Linear(8, ENTRIES))


def _maps(tokens: Tensor, last: LastBlock, *args: Any, features: Features | None = None, **options: Any) -> Tensor:
    tail = last.tail
    return softmax_gradcam(tokens, tail.normalise, features or tail.features, tail.patches, *args, **options)


def _naive(
    tokens: Tensor, last: LastBlock, logits: Logits, present: Tensor, targets: Tensor, values: bool = False
) -> list[Tensor]:
    """One image, one class at a time, through the block's own modules.

    With ``values``: uncut, every patch sees itself alone, and nothing stands behind the attention.
    """
    alone, maps, block = torch.full((PATCHES, PATCHES), float("-inf")).fill_diagonal_(0.0), [], last.block
    for image, allowed, wanted in zip(tokens, present, targets, strict=True):
        for entry in wanted.nonzero().flatten().tolist():
            a = block.ln_1(image[None, values:]).detach().requires_grad_()
            x = block.attn(a, a, a, need_weights=False, attn_mask=alone if values else None)[0]
            if not values:
                x = image[None] + block.ls_1(x)
                x = (x + block.ls_2(block.mlp(block.ln_2(x))))[:, 1:]
            pooled = (last.ln_post(x) @ last.projection).mean(dim=1)
            columns = allowed.nonzero().flatten().tolist()
            probability = logits(pooled)[0, columns].softmax(dim=0)[columns.index(entry)]
            (gradient,) = torch.autograd.grad(probability, a)
            patches = slice(0 if values else 1, None)
            found = a[0, patches].detach() @ gradient[0, patches].mean(dim=0)
            maps.append(found if values else found.clamp_min(0))
    return maps


def _close(actual: Tensor, expected: Tensor) -> None:
    assert actual.shape == expected.shape
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("logits", [_cosine(), _head()], ids=["cosine", "head"])
def test_same_as_one_class_at_a_time(tokens: Tensor, last_block: LastBlock, logits: Logits) -> None:
    expected = torch.stack(_naive(tokens, last_block, logits, PRESENT, TARGETS))
    assert (expected > 0).any(dim=1).all()  # else the comparison says nothing
    actual = _maps(tokens, last_block, logits, PRESENT, TARGETS)
    _close(actual, expected)
    assert not actual.requires_grad
    assert tokens.grad is None


def test_all_present_entries_by_default(tokens: Tensor, last_block: LastBlock) -> None:
    expected = torch.stack(_naive(tokens, last_block, _cosine(), PRESENT, PRESENT))
    _close(_maps(tokens, last_block, _cosine(), PRESENT), expected)


@pytest.mark.parametrize("batch", [0, 3])
def test_nothing_asked(tokens: Tensor, last_block: LastBlock, batch: int) -> None:
    none = torch.zeros(batch, ENTRIES, dtype=torch.bool)
    assert _maps(tokens[:batch], last_block, _cosine(), none).shape == (0, PATCHES)


def test_an_image_without_any_entry_does_not_spoil_the_others(tokens: Tensor, last_block: LastBlock) -> None:
    present = PRESENT.clone()
    present[2] = False
    _close(
        _maps(tokens, last_block, _cosine(), present, TARGETS),
        _maps(tokens, last_block, _cosine(), PRESENT, TARGETS),
    )


def test_tokens_made_under_inference_mode(tokens: Tensor, last_block: LastBlock) -> None:
    with torch.inference_mode():
        frozen = tokens.clone()
    assert frozen.is_inference()
    with torch.no_grad():
        actual = _maps(frozen, last_block, _cosine(), PRESENT, TARGETS)
    _close(actual, _maps(tokens, last_block, _cosine(), PRESENT, TARGETS))


def test_relu_cuts_the_negative_part_and_nothing_else(tokens: Tensor, last_block: LastBlock) -> None:
    cut = _maps(tokens, last_block, _cosine(), PRESENT, TARGETS, relu=True)
    whole = _maps(tokens, last_block, _cosine(), PRESENT, TARGETS, relu=False)
    assert (whole < 0).any()
    assert torch.equal(whole.clamp_min(0), cut)


@pytest.mark.parametrize("logits", [_cosine(), _head()], ids=["cosine", "head"])
def test_value_features(tokens: Tensor, last_block: LastBlock, logits: Logits) -> None:
    expected = torch.stack(_naive(tokens, last_block, logits, PRESENT, TARGETS, values=True))
    actual = _maps(tokens, last_block, logits, PRESENT, TARGETS, features=last_block.tail.value_features, relu=False)
    _close(actual, expected)
    whole_block = _maps(tokens, last_block, logits, PRESENT, TARGETS, relu=False)
    assert not torch.allclose(actual, whole_block, rtol=1e-2, atol=0)


@pytest.mark.parametrize(
    ("labels", "classes", "count", "present", "targets"),
    [
        pytest.param([(1,)], 3, 5, ["01011"], ["01000"], id="one class"),
        pytest.param([(0, 2), (1,)], 3, 5, ["10111", "01011"], ["10100", "01000"], id="two images"),
        pytest.param([(), (0,)], 2, 3, ["001", "101"], ["000", "100"], id="an image without classes"),
        pytest.param([(0, 1)], 2, 2, ["11"], ["11"], id="no background words"),
        pytest.param([], 2, 3, [], [], id="no images"),
    ],
)
def test_softmax_entries(
    labels: list[tuple[int, ...]], classes: int, count: int, present: list[str], targets: list[str]
) -> None:
    found = softmax_entries(labels, classes, count)
    for tensor, rows in zip(found, (present, targets), strict=True):
        assert tensor.dtype == torch.bool
        assert tensor.shape == (len(labels), count)
        assert ["".join(str(int(cell)) for cell in row) for row in tensor] == rows


def test_cosine_logits() -> None:
    text = F.normalize(torch.randn(3, 4), dim=1)
    features = torch.randn(2, 4)
    expected = [[10 * float(f @ t / f.norm()) for t in text] for f in features]
    torch.testing.assert_close(cosine_logits(text, 10.0)(features), torch.tensor(expected))


@given(st.lists(st.integers(-100, 100), min_size=2, max_size=9), st.sampled_from([1e-10, 1e-6, 1.0, 1e6]))
def test_min_max(values: list[int], scale: float) -> None:
    scaled = min_max(torch.tensor([values, values[::-1]], dtype=torch.float32) * scale)
    if len(set(values)) == 1:
        assert not scaled.any()
    else:
        low, high = min(values), max(values)
        torch.testing.assert_close(scaled[0], torch.tensor([(v - low) / (high - low) for v in values]), rtol=1e-4, atol=1e-5)
    assert torch.equal(scaled[1], scaled[0].flip(0))


def test_min_max_reaches_one_however_small() -> None:
    maps = torch.tensor([[0.0, 0.5e-12, 1e-12], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    assert min_max(maps)[:, 2].tolist() == [1, 0, 0]
    assert float(min_max(maps)[0, 1]) == pytest.approx(0.5)


def test_min_max_of_no_maps() -> None:
    assert min_max(torch.zeros(0, 5)).shape == (0, 5)


@pytest.mark.parametrize("values", [False, True])
@pytest.mark.parametrize("own_way", [True, False])
def test_by_a_shift(tokens: Tensor, last_block: LastBlock, values: bool, own_way: bool) -> None:
    """The same maps from a gradient by one vector, whether a tail has a shorter way for it or not."""
    tail = last_block.tail if own_way else replace(last_block.tail, shifted=None)
    features = tail.value_features if values else tail.features
    for logits in (_cosine(), _head()):
        expected = torch.stack(_naive(tokens, last_block, logits, PRESENT, TARGETS, values))
        actual = _maps(tokens, last_block, logits, PRESENT, TARGETS, features=features, relu=not values, by_shift=True)
        _close(actual, expected)
