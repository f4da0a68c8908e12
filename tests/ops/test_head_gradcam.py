"""GradCAM through heads against autograd, one class and one patch at a time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipelines.models.alignment import ProjectionHead
from pipelines.ops.head_gradcam import head_gradcam
from pipelines.ops.scaling import min_max

WIDTH, PATCHES, ENTRIES = 10, 7, 5


def drawn_head(residual: bool) -> ProjectionHead:
    """A head in eval mode none of whose numbers is 0 or 1, BatchNorm's running ones included."""
    generator = torch.Generator().manual_seed(0)
    head = ProjectionHead(WIDTH, 8, residual).eval()
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.5, generator=generator)
    norm = head.layers[1]
    assert isinstance(norm, nn.BatchNorm1d)
    nn.init.normal_(norm.running_mean, generator=generator)
    nn.init.uniform_(norm.running_var, 0.5, 2, generator=generator)
    return head


@pytest.fixture(params=[False, True], ids=["replaces", "residual"])
def head(request: pytest.FixtureRequest) -> ProjectionHead:
    return drawn_head(request.param)


@pytest.fixture
def tokens() -> Tensor:
    return torch.randn(PATCHES, WIDTH, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def text() -> Tensor:
    return F.normalize(torch.randn(ENTRIES, WIDTH, generator=torch.Generator().manual_seed(2)), dim=1)


def slow_maps(
    tokens: Tensor, project: Callable[[Tensor], Tensor], text: Tensor, targets: int, temperature: float, odds: bool
) -> Tensor:
    """In fp64, of p or of its log-odds: one class, one patch at a time."""
    maps = []
    for target in range(targets):
        leaf = tokens.double().detach().requires_grad_()
        pooled = sum(project(patch[None])[0] for patch in leaf) / len(leaf)
        cosines = [torch.dot(pooled / pooled.norm(), row.double()) for row in text]
        exponents = [(cosine / temperature).exp() for cosine in cosines]
        p = exponents[target] / sum(exponents)
        (gradient,) = torch.autograd.grad((p / (1 - p)).log() if odds else p, leaf)
        alpha = sum(gradient) / len(gradient)  # (D,)
        maps.append(torch.stack([torch.dot(alpha, patch) for patch in leaf.detach()]))
    return torch.stack(maps)


@pytest.mark.parametrize("temperature", [0.05, 0.5])
@pytest.mark.parametrize("targets", [1, 3, ENTRIES])
def test_same_direction_as_the_gradient_of_probabilities(tokens, head, text, targets, temperature):
    found = head_gradcam(tokens, head, text, targets, temperature)
    head.double()
    expected = slow_maps(tokens, head, text, targets, temperature, odds=False)
    assert found.shape == (targets, PATCHES)
    assert found.dtype == torch.float32
    assert not found.requires_grad
    assert all(parameter.grad is None for parameter in head.parameters())
    torch.testing.assert_close(min_max(found), min_max(expected).float(), atol=1e-4, rtol=1e-4)
    assert (F.cosine_similarity(found, expected.float(), dim=1) > 0.9999).all()  # the sign, which min-max keeps, and the zero


@pytest.mark.parametrize("temperature", [0.05, 0.5])
def test_same_size_as_the_gradient_of_log_odds(tokens, head, text, temperature):
    found = head_gradcam(tokens, head, text, 3, temperature)
    head.double()
    expected = slow_maps(tokens, head, text, 3, temperature, odds=True).float()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_relu_cuts_the_negative_part(tokens, head, text):
    whole, cut = (head_gradcam(tokens, head, text, 3, 0.1, relu) for relu in (False, True))
    assert (whole < 0).any()
    assert (whole > 0).any()
    assert torch.equal(cut, whole.clamp_min(0))


def test_a_softmax_that_is_sure_still_has_a_map(tokens, head, text):
    """Where p is 1 in fp32 its gradient is 0; the map is that of the log-odds in fp64."""
    pooled = F.normalize(head(tokens).mean(dim=0), dim=0).detach()
    beside = F.normalize(pooled + 0.3 * text[:1], dim=1)  # not at the optimum, where the cosine has no gradient
    entries, temperature = torch.cat([beside, text]), 1e-3
    assert (entries @ pooled / temperature).softmax(dim=0)[0] == 1
    found = head_gradcam(tokens, head, entries, 2, temperature)
    assert found.isfinite().all()
    assert found.any(dim=1).all()
    leaf = tokens.double().requires_grad_()
    logits = entries.double() @ F.normalize(head.double()(leaf).mean(dim=0), dim=0) / temperature
    for target in range(2):
        others = torch.cat([logits[:target], logits[target + 1 :]])
        (gradient,) = torch.autograd.grad(logits[target] - torch.logsumexp(others, dim=0), leaf, retain_graph=True)
        expected = min_max(gradient.mean(dim=0) @ leaf.detach().T).float()
        torch.testing.assert_close(min_max(found[target]), expected, atol=1e-3, rtol=1e-3)


def test_tokens_and_text_made_under_inference_mode(tokens, head, text):
    expected = head_gradcam(tokens, head, text, 3, 0.1)
    with torch.inference_mode():
        found = head_gradcam(tokens.clone(), head, text.clone(), 3, 0.1)
        frozen = tokens.clone()
    torch.testing.assert_close(found, expected)
    assert frozen.is_inference()
    torch.testing.assert_close(head_gradcam(frozen, head, text, 3, 0.1), expected)


def test_leaves_the_head_as_it_was(tokens, head, text):
    before = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    head_gradcam(tokens, head, text, 3, 0.1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in head.state_dict().items())


def test_a_class_with_nothing_beside_it(tokens, head, text):
    """No other entry: no odds, but the class's own cosine still says where it is."""
    assert head_gradcam(tokens, head, text[:1], 1, 0.1).isfinite().all()


@pytest.mark.parametrize("relu", [True, False])
def test_a_photo_without_classes_has_no_map(tokens, head, text, relu):
    assert head_gradcam(tokens, head, text, 0, 0.05, relu).shape == (0, PATCHES)
