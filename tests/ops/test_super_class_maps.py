"""Super-class maps and their Dice loss, step by step against loops; a shifted prediction moves to the features' border."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from pipelines.ops.super_class_maps import (
    UNKNOWN,
    boundary_maps,
    dice_losses,
    pooled_prototypes,
    super_probabilities,
    supers_predicted,
)

OF_CLASS = torch.tensor([0, 1, 0, 2])
BATCH, SUPERS, TOKENS, WIDTH = 2, 3, 6, 4


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)


def test_maps_are_those_of_a_loop():
    """Pooled features, cosines to them after the photo's mean is taken away, scaled to [0, 1]; padding counts nowhere."""
    maps, features = draw(BATCH, SUPERS, TOKENS), draw(BATCH, TOKENS, WIDTH, seed=1)
    valid = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    found = boundary_maps(maps, features, valid)
    for image in range(BATCH):
        photo = [token for token in range(TOKENS) if valid[image, token]]
        rows = {token: features[image, token].tolist() for token in photo}
        mean = [sum(row[d] for row in rows.values()) / len(rows) for d in range(WIDTH)]
        rows = {token: [x - m for x, m in zip(row, mean, strict=True)] for token, row in rows.items()}
        for place in range(SUPERS):
            weights = {token: float(maps[image, place, token]) for token in photo}
            prototype = [sum(weights[t] * rows[t][d] for t in photo) for d in range(WIDTH)]
            cosines = {token: max(0.0, cosine(prototype, rows[token])) for token in photo}
            low, high = min(cosines.values()), max(cosines.values())
            for token in range(TOKENS):
                wanted = (cosines[token] - low) / (high - low) if token in photo else UNKNOWN
                assert math.isclose(found[image, place, token], wanted, abs_tol=1e-9)


def test_an_empty_map_has_no_prototype():
    assert not pooled_prototypes(torch.zeros(1, 1, TOKENS), draw(1, TOKENS, WIDTH).float()).any()


def test_losses_are_those_of_a_loop():
    logits, maps = 3 * draw(BATCH, 5, TOKENS) - 1, draw(BATCH, SUPERS, TOKENS, seed=1)
    maps[0, 2] = maps[1, :, 4:] = UNKNOWN
    found = super_probabilities(logits, OF_CLASS, SUPERS)
    losses, met = dice_losses(found, maps), supers_predicted(logits, OF_CLASS, SUPERS, (maps >= 0).any(dim=1))
    for image in range(BATCH):
        dices, seen = [], set()
        for place in range(SUPERS):
            both = either = 0.0
            for token in range(TOKENS):
                odds = logits[image, :, token].exp()
                share = sum(float(odds[1 + c] / odds.sum()) for c in range(4) if OF_CLASS[c] == place)
                assert math.isclose(found[image, place, token], share, abs_tol=1e-12)
                target = float(maps[image, place, token])
                if target == UNKNOWN:
                    continue
                both, either = both + share * target, either + share + target
                best = int(odds.argmax())
                seen |= {int(OF_CLASS[best - 1])} if best else set()
            dices += [1 - 2 * both / either] if either else []
        assert math.isclose(losses[image], sum(dices) / len(dices), abs_tol=1e-9)
        assert met[image] == len(seen)


def test_nothing_known_is_no_loss():
    logits = torch.zeros(1, 5, TOKENS, requires_grad=True)
    unknown = torch.full((1, SUPERS, TOKENS), UNKNOWN)
    loss = dice_losses(super_probabilities(logits, OF_CLASS, SUPERS), unknown)
    loss.sum().backward()
    assert loss.tolist() == [0.0]
    assert not logits.grad.any()


def test_a_shifted_prediction_moves_to_the_border_of_the_features():
    """Columns 0-3 show one thing, 4-9 another; CAMs are blobs inside them, the prediction stands 2 columns off."""
    columns = torch.arange(16).repeat(4)  # (N,) of a grid of 4 x 16
    region = torch.bucketize(columns, torch.tensor([3, 9]))  # (N,)
    features = F.one_hot(region, 3).double() + 0.1 * draw(64, 3)  # (N, 3)
    blobs = torch.stack([(columns - 1).abs() < 2, (columns - 6).abs() < 2]).double()  # (2, N)
    maps = boundary_maps(blobs.unsqueeze(0), features.unsqueeze(0))  # (1, 2, N)
    shifted = torch.bucketize(columns, torch.tensor([5, 11]))  # (N,)
    wrong = F.one_hot(shifted, 3).double()[:, [2, 0, 1]]  # (N, 3) background first
    logits = (2 * wrong.T.unsqueeze(0)).requires_grad_()  # (1, 3, N)
    of_class = torch.tensor([0, 1])
    errors = []
    for _ in range(60):
        errors.append(int((logits[0].argmax(dim=0) != (region + 1) % 3).sum()))
        dice_losses(super_probabilities(logits, of_class, 2), maps).sum().backward()
        with torch.no_grad():
            logits -= 50 * logits.grad
            logits.grad = None
    assert errors[0] == 16
    assert errors[-1] == 0
