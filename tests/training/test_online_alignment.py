"""Heads that are trained on beside the decoder: their prototypes, and that neither loss reaches the other's parameters."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.models.alignment import AlignmentHeads
from pipelines.models.decoder import SegmentationDecoder
from pipelines.options.align import AlignOptions
from pipelines.options.train import TrainOptions
from pipelines.training.alignment_loss import Batch, Prototypes, alignment_loss
from pipelines.training.losses import Targets
from pipelines.training.online_alignment import OnlineAlignment
from pipelines.training.segmentation import SegmentationTrainer, StepLosses

EMBED, CLASSES, WORDS, PATCHES = 5, 4, 2, 6
CPU = torch.device("cpu")


def make(refresh: int = 3, **options: Any) -> OnlineAlignment:
    torch.manual_seed(0)
    heads = AlignmentHeads(EMBED, 6, False, 0.1, learn_temperature=False).eval().requires_grad_(False)
    text = F.normalize(torch.randn(CLASSES + WORDS, EMBED), dim=1)
    prototypes = F.normalize(torch.randn(CLASSES, EMBED), dim=1)
    return OnlineAlignment(heads, prototypes, text, AlignOptions(**options), refresh)


def batch(step: int, classes: list[list[int]]) -> Batch:
    draw = torch.Generator().manual_seed(step)
    slots = torch.tensor(classes, dtype=torch.int64).view(len(classes), -1)
    tokens, cams = torch.randn(len(classes), PATCHES, EMBED, generator=draw), torch.rand(*slots.shape, PATCHES, generator=draw)
    return Batch(tokens, cams * (slots >= 0).unsqueeze(2), slots, torch.zeros_like(slots))


def pooled_by_hand(heads: AlignmentHeads, samples: Batch, power: float) -> list[tuple[int, Tensor]]:
    found = []
    for photo, classes in enumerate(samples.classes.tolist()):
        for slot, label in enumerate(classes):
            if label >= 0:
                weights = samples.cams[photo, slot] ** power
                total = sum(w * heads.isa(token) for w, token in zip(weights, samples.tokens[photo], strict=True))
                found.append((label, F.normalize(total, dim=0).detach()))
    return found


BATCHES = [[[0, 1]], [[1, -1], [0, 1]], [[1]], [[3]], [[-1]], [[3, 0]], [[0]]]  # class 2 has no photo


@pytest.mark.parametrize("refresh", [1, 3, 7])
def test_prototypes_are_those_of_the_samples_since_the_last_refresh(refresh):
    online = make(refresh, cam_power=1.5)
    first = online.prototypes.clone()
    collected: list[tuple[int, Tensor]] = []
    for step, classes in enumerate(BATCHES):
        before, samples = online.prototypes, batch(step, classes)
        online.loss(samples)
        assert online.prototypes is before
        collected += pooled_by_hand(online.heads, samples, 1.5)
        online.finish_step(step + 1)
        if (step + 1) % refresh:
            assert online.prototypes is before
            continue
        for label in range(CLASSES):
            own = [feature for found, feature in collected if found == label]
            expected = F.normalize(torch.stack(own).sum(dim=0), dim=0) if own else before[label]
            torch.testing.assert_close(online.prototypes[label], expected, rtol=1e-4, atol=1e-5)
        collected = []
    assert torch.equal(online.prototypes[2], first[2])
    assert not torch.allclose(online.prototypes[1], first[1], atol=0.1)
    assert not online.prototypes.requires_grad


@pytest.mark.parametrize("loss", ["cross", "intra", "direct"])
def test_loss_is_that_of_align(loss):
    online = make(loss=loss, separation=0.2)
    twin, samples = copy.deepcopy(online.heads).train(), batch(3, [[0, 1], [3, -1]])
    expected = alignment_loss(twin, samples, online.text, CLASSES, Prototypes(online.prototypes), online.options)
    found = online.loss(samples)
    torch.testing.assert_close(found, expected)
    found.backward()
    expected.backward()
    for ours, theirs in zip(online.heads.parameters(), twin.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None)
        if ours.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad)


def test_heads_are_in_evaluation_mode_but_for_the_loss():
    """CAMs are read through them between the steps; running numbers of BatchNorm move once a loss."""
    online = make()
    for step in range(2):
        online.loss(batch(step, [[0], [1]]))
        assert not any(module.training for module in online.heads.modules())
        assert int(online.heads.isa.layers[1].num_batches_tracked) == step + 1


@pytest.mark.parametrize("learn", [True, False])
def test_temperature_is_trained_if_asked(learn):
    online = make(learn_temperature=learn)
    assert all(p.requires_grad for name, p in online.heads.named_parameters() if name != "log_temperature")
    assert online.heads.log_temperature.requires_grad == learn


@pytest.mark.parametrize("loss", ["cross", "intra", "direct"])
@pytest.mark.parametrize("classes", [[[], []], [[-1], [-1]]], ids=["no slot", "empty slots"])
def test_photos_without_classes(classes, loss):
    """They still say what background looks like."""
    online = make(refresh=1, loss=loss)
    before = online.prototypes.clone()
    found = online.loss(batch(0, classes))
    found.backward()
    online.finish_step(1)
    assert found.isfinite()
    assert (found > 0) == (loss == "cross")
    assert all(p.grad.isfinite().all() for p in online.heads.parameters() if p.grad is not None)
    assert torch.equal(online.prototypes, before)


# beside the decoder


def joint(gamma: float) -> tuple[SegmentationTrainer, OnlineAlignment]:
    online = make()
    torch.manual_seed(1)
    decoder = SegmentationDecoder(2, 6, 3, hidden=8, layers=1, heads=2)
    options = TrainOptions(
        hidden=8, dropout=0.2, warmup=0, iterations=9, gamma=gamma, affinity_loss=0.1, learning_rate=1e-3, train_heads=True
    )
    return SegmentationTrainer(decoder, options, CPU, online), online


def take(trainer: SegmentationTrainer, step: int, with_samples: bool = True) -> StepLosses:
    draw = torch.Generator().manual_seed(step)
    tokens, labels = torch.randn(2, 2, 6, 6, generator=draw), torch.randint(0, 4, (2, 8, 12), generator=draw)
    samples = batch(step, [[0, 1], [2, -1]]) if with_samples else None
    trainer.backward(trainer.forward(tokens, (2, 3), (0, 1)), Targets(labels, samples))
    return trainer.step()


def test_neither_loss_reaches_the_others_parameters():
    trainer, online = joint(0.1)
    alone = copy.deepcopy(online)
    alone.loss(batch(0, [[0, 1], [2, -1]])).backward()
    found = take(trainer, 0)
    for ours, theirs in zip(online.heads.parameters(), alone.heads.parameters(), strict=True):
        if theirs.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad)  # from L_proto alone
    assert found["prototype"] > 0
    assert any(p.grad.abs().max() > 0 for p in online.heads.parameters() if p.grad is not None)


def test_gamma_scales_the_decoders_gradient_and_nothing_else():
    gradients, weights = [], []
    for gamma in (0.1, 1.0):
        trainer, online = joint(gamma)
        losses = take(trainer, 0)
        decoder = torch.cat([p.grad.flatten() for p in trainer.decoder.parameters() if p.grad is not None])
        heads = torch.cat([p.grad.flatten() for p in online.heads.parameters() if p.grad is not None])
        gradients.append((decoder, heads))
        weights.append((torch.cat([p.flatten() for p in trainer.decoder.parameters()]), losses))
    (small, heads), (large, same) = gradients
    assert torch.equal(heads, same)
    torch.testing.assert_close(small * 10, large, rtol=1e-4, atol=1e-6)
    moved = large.abs() > 1e-4  # Adam's step is the same but for its epsilon where a gradient is nothing but rounding
    assert moved.float().mean() > 0.5
    torch.testing.assert_close(weights[0][0][moved], weights[1][0][moved], rtol=0, atol=2e-6)
    assert weights[0][1] == weights[1][1]  # losses are written down before their weights


def test_heads_move_only_with_samples():
    trainer, online = joint(0.1)
    for group in trainer.optimiser.param_groups:
        group["weight_decay"] = 0.0
    before = {name: tensor.clone() for name, tensor in online.heads.state_dict().items()}
    assert take(trainer, 0, with_samples=False)["prototype"] == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in online.heads.state_dict().items())
    take(trainer, 1)
    assert not torch.equal(online.heads.isa.layers[0].weight, before["isa.layers.0.weight"])
