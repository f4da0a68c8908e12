"""Alignment heads: what an untrained one does, shapes, and what is trained."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipelines.models.alignment import AlignmentHeads, ProjectionHead

WIDTH, HIDDEN = 6, 10


@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
def test_an_untrained_residual_head_is_the_identity(train):
    torch.manual_seed(0)
    x = torch.randn(7, WIDTH)
    assert torch.equal(ProjectionHead(WIDTH, HIDDEN, True).train(train)(x), x)
    assert not torch.allclose(ProjectionHead(WIDTH, HIDDEN, False).train(train)(x), x, atol=0.1)


def test_an_untrained_residual_head_can_learn():
    head = ProjectionHead(WIDTH, HIDDEN, True)
    head(torch.randn(7, WIDTH)).square().sum().backward()
    assert head.layers[3].weight.grad.abs().max() > 0


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("shape", [(5, WIDTH), (3, 4, WIDTH), (1, 2, WIDTH), (2, 3, 4, WIDTH)], ids=str)
def test_layers_of_each_vector_by_itself(shape, residual):
    torch.manual_seed(1)
    head = ProjectionHead(WIDTH, HIDDEN, residual).eval()
    for tensor in (*head.parameters(), head.layers[1].running_mean):
        nn.init.normal_(tensor)
    head.layers[1].running_var.uniform_(0.5, 2)
    x = torch.randn(shape)
    found = head(x)
    assert found.shape == x.shape
    first, norm, _, last = head.layers
    for vector, projected in zip(x.reshape(-1, WIDTH), found.detach().reshape(-1, WIDTH), strict=True):
        h = first.weight @ vector + first.bias
        h = (h - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
        expected = last.weight @ h.clamp_min(0) + last.bias + (vector if residual else 0)
        torch.testing.assert_close(projected, expected, atol=1e-4, rtol=1e-4)


def test_batch_statistics_are_those_of_all_patches_of_all_images():
    torch.manual_seed(2)
    head = ProjectionHead(WIDTH, HIDDEN, False).train()
    x = torch.randn(3, 4, WIDTH)
    torch.testing.assert_close(head(x), head(x.view(12, WIDTH)).view(3, 4, WIDTH))


@pytest.mark.parametrize("learn", [True, False])
@pytest.mark.parametrize("temperature", [0.01, 0.05, 1.0, 3.0])
def test_temperature(temperature, learn):
    heads = AlignmentHeads(WIDTH, HIDDEN, True, temperature, learn)
    assert heads.temperature.item() == pytest.approx(temperature)
    trained = [name for name, parameter in heads.named_parameters() if parameter.requires_grad]
    assert ("log_temperature" in trained) == learn
    assert heads.temperature.requires_grad == learn
