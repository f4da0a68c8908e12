"""The trainer of the decoder: schedule, loss, dropout, and that a resumed or shared training is the undisturbed one."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.errors import SsrError
from pipelines.models.alignment import AlignmentHeads
from pipelines.models.decoder import SegmentationDecoder
from pipelines.options.align import AlignOptions
from pipelines.options.train import TrainOptions
from pipelines.stores.checkpoint import read_checkpoint, write_checkpoint
from pipelines.training.alignment_loss import Batch
from pipelines.training.losses import Loss, Targets
from pipelines.training.online_alignment import OnlineAlignment
from pipelines.training.segmentation import SegmentationTrainer, StepLosses

BLOCKS, WIDTH, CLASSES, GRID, SIDE, EMBED = 2, 6, 3, (3, 4), 16, 5
CPU = torch.device("cpu")


class Listening(SegmentationDecoder):
    """Notes the channel factors that it is given."""

    def __init__(self, *args: int, **sizes: int) -> None:
        super().__init__(*args, **sizes)
        self.channels: list[Tensor | None] = []

    def forward(
        self, tokens: Tensor, grid: tuple[int, int], channels: Tensor | None = None, joint: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        self.channels.append(channels)
        return super().forward(tokens, grid, channels, joint)


def crop(step: int, slot: int) -> tuple[Tensor, Tensor]:
    """Tokens ``(L, N, D)`` and labels ``(S, S)`` with some 255; few foreground pixels in the first slots."""
    draw = torch.Generator().manual_seed(100 * step + slot)
    labels = torch.randint(1, CLASSES + 1, (SIDE, SIDE), generator=draw)
    labels[torch.rand(SIDE, SIDE, generator=draw) > 0.1 + 0.2 * slot] = 0
    labels[: slot + 1, :7] = 255
    return torch.randn(BLOCKS, GRID[0] * GRID[1], WIDTH, generator=draw), labels


def samples(step: int, slots: tuple[int, ...]) -> Batch:
    draw = torch.Generator().manual_seed(7 + step)
    features, cams = torch.randn(9, 12, EMBED, generator=draw), torch.rand(9, 1, 12, generator=draw)
    classes = torch.tensor([[(step + slot) % CLASSES] for slot in slots])
    return Batch(features[list(slots)], cams[list(slots)], classes, torch.zeros_like(classes))


@dataclass(frozen=True)
class MicroBatch:
    """What a trainer is given for some of a step's crops."""

    tokens: Tensor
    grid: tuple[int, int]
    slots: tuple[int, ...]
    targets: Targets


def micro_batch(step: int, slots: tuple[int, ...], heads: bool = False) -> MicroBatch:
    tokens, labels = zip(*(crop(step, slot) for slot in slots), strict=True)
    targets = Targets(torch.stack(labels), samples(step, slots) if heads else None)
    return MicroBatch(torch.stack(tokens, dim=1), GRID, slots, targets)


def take(trainer: SegmentationTrainer, *micro_batches: MicroBatch | None) -> StepLosses:
    """One step; None is a micro-batch without crops."""
    trainer.micro_batches = len(micro_batches)
    for given in micro_batches:
        if given is None:
            trainer.skip()
        else:
            trainer.backward(trainer.forward(given.tokens, given.grid, given.slots), given.targets)
    return trainer.step()


def make(heads: bool = False, dtype: torch.dtype = torch.float32, seed: int = 0, **options: Any) -> SegmentationTrainer:
    settings = {"iterations": 8, "warmup": 2, "hidden": 8, "dropout": 0.0, "learning_rate": 1e-2, "seed": seed, **options}
    settings["train_heads"] = heads
    torch.manual_seed(seed)
    decoder = Listening(BLOCKS, WIDTH, CLASSES, hidden=8, layers=1, heads=2)
    alignment = None
    if heads:
        untrained = AlignmentHeads(EMBED, 6, False, 0.1, learn_temperature=False).eval().requires_grad_(False)
        text = F.normalize(torch.randn(CLASSES + 2, EMBED), dim=1)
        prototypes = F.normalize(torch.randn(CLASSES, EMBED), dim=1)
        alignment = OnlineAlignment(untrained, prototypes, text, AlignOptions(learn_temperature=True), refresh=3)
    return SegmentationTrainer(decoder, TrainOptions(**settings), CPU, alignment, dtype=dtype)


def gradients(trainer: SegmentationTrainer) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in trainer.decoder.named_parameters() if p.grad is not None}


def kept(trainer: SegmentationTrainer) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in trainer.state().items()}


# schedule


@pytest.mark.parametrize(
    ("options", "factors"),
    [
        pytest.param({"warmup": 0}, [1, 0.8, 0.6, 0.4, 0.2], id="linear decay"),
        pytest.param({"warmup": 2}, [0.5, 0.8, 0.6, 0.4, 0.2], id="warm-up ends at full height"),
        pytest.param({"warmup": 4}, [0.25, 0.5 * 0.8, 0.75 * 0.6, 0.4, 0.2], id="longer warm-up"),
        pytest.param({"warmup": 0, "poly": 0.9}, [(1 - step / 5) ** 0.9 for step in range(5)], id="poly"),
        pytest.param({"warmup": 50}, [(step + 1) / 50 * (1 - step / 5) for step in range(5)], id="warm-up beyond the end"),
    ],
)
def test_learning_rates(options, factors):
    trainer = make(heads=True, iterations=5, learning_rate=0.5, heads_learning_rate=1e-3, **options)
    for step, factor in enumerate(factors):
        found = take(trainer, micro_batch(step, (0,), heads=True))
        assert found["learning_rate"] == pytest.approx(0.5 * factor)
        assert [group["lr"] for group in trainer.optimiser.param_groups] == pytest.approx([0.5 * factor, 1e-3 * factor])
        assert found["learning_rate"] > 0
    assert trainer.iteration == 5


# loss


def naive_losses(decoder: SegmentationDecoder, crops: MicroBatch, radius: int) -> tuple[Tensor, Tensor]:
    """Cross-entropy and affinity loss, pixel by pixel and pair by pair."""
    labels = crops.targets.labels
    logits, features = decoder(crops.tokens, crops.grid)
    upsampled = F.interpolate(logits, size=labels.shape[1:], mode="bilinear", align_corners=False)
    halves: tuple[list[Tensor], list[Tensor]] = ([], [])
    pairs: tuple[list[Tensor], list[Tensor]] = ([], [])
    h, w = crops.grid
    places = [(y, x) for y in range(h) for x in range(w)]
    for image, own in enumerate(labels):
        for y in range(SIDE):
            for x in range(SIDE):
                if own[y, x] != 255:
                    halves[own[y, x] > 0].append(-upsampled[image, :, y, x].log_softmax(dim=0)[own[y, x]])
        token = {(y, x): int(own[y * SIDE // h, x * SIDE // w]) for y, x in places}
        for first in places:
            for second in places:
                far = max(abs(first[0] - second[0]), abs(first[1] - second[1])) > radius
                if far or 255 in (token[first], token[second]):
                    continue
                alike = (features[image, :, *first] * features[image, :, *second]).sum().sigmoid()
                same = token[first] == token[second]
                pairs[not same].append(1 - alike if same else alike)
    entropy = sum(torch.stack(half).mean() for half in halves) / 2
    affinity = sum(torch.stack(half).sum() / (len(half) + 1) for half in pairs) / 2
    return entropy, affinity


@pytest.mark.parametrize("weight", [0.0, 0.1])
def test_a_step_is_adamw_on_the_naive_loss(weight):
    trainer = make(affinity_loss=weight, affinity_radius=1, weight_decay=0.05)
    twin = copy.deepcopy(trainer.decoder)
    crops = micro_batch(0, (0, 1, 2))
    entropy, affinity = naive_losses(twin, crops, radius=1)
    found = take(trainer, crops)
    assert found["segmentation"] == pytest.approx(entropy.item(), rel=1e-5)
    assert found["affinity"] == pytest.approx(affinity.item() if weight else 0, rel=1e-5)
    assert found["prototype"] == 0
    optimiser = torch.optim.AdamW(twin.parameters(), lr=1e-2 / 2, weight_decay=0.05)
    (entropy + weight * affinity).backward()
    for (name, ours), theirs in zip(trainer.decoder.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")
        theirs.grad = ours.grad.clone()  # Adam makes steps of rounding
    optimiser.step()
    for ours, theirs in zip(trainer.decoder.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_micro_batches_of_one_step_count_equally():
    """Two of equal size are their mean; gradients of the step before are gone."""
    trainers = [make(affinity_loss=0.1) for _ in range(4)]
    a, b = micro_batch(0, (0, 1)), micro_batch(0, (2, 3))
    losses = [take(trainer, *given) for trainer, given in zip(trainers, [[a], [b], [a, b], [a, a]], strict=True)]
    first, second, both, twice = (gradients(trainer) for trainer in trainers)
    assert losses[2]["segmentation"] == pytest.approx((losses[0]["segmentation"] + losses[1]["segmentation"]) / 2)
    assert losses[2]["affinity"] == pytest.approx((losses[0]["affinity"] + losses[1]["affinity"]) / 2)
    for name, gradient in both.items():
        torch.testing.assert_close(gradient, (first[name] + second[name]) / 2, rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(twice[name], first[name], rtol=1e-4, atol=1e-7)
    assert any(not torch.allclose(first[name], second[name], rtol=0.1) for name in first)
    again = make(affinity_loss=0.1)
    again.decoder.load_state_dict(trainers[0].decoder.state_dict())
    take(again, b)
    take(trainers[0], b)
    for name, gradient in gradients(again).items():
        torch.testing.assert_close(gradient, gradients(trainers[0])[name])


@pytest.mark.parametrize("affinity_loss", [0.0, 0.1])
@pytest.mark.parametrize("labels", ["all 255", "background alone", "no crop"])
def test_steps_without_anything_to_learn_are_finite(labels, affinity_loss):
    trainer = make(affinity_loss=affinity_loss)
    before = kept(trainer)
    value = 255 if labels == "all 255" else 0
    empty = replace(micro_batch(0, (0,)), targets=Targets(torch.full((1, SIDE, SIDE), value)))
    found = take(trainer, None if labels == "no crop" else empty)
    assert (found["segmentation"] > 0) == (labels == "background alone")
    state = kept(trainer)
    assert all(bool(tensor.isfinite().all()) for tensor in state.values())
    if labels != "background alone":  # weight decay alone
        torch.testing.assert_close(state["decoder.fusion.weight"], before["decoder.fusion.weight"] * (1 - 1e-2 / 2 * 0.01))


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ((torch.ones(2), torch.ones(2)), r"returned \(2,\) and \(2,\), expected .* \(1,\) each .*size=1"),
        ((torch.tensor(1.0), torch.ones(1)), r"returned \(\) and \(1,\)"),
        (torch.ones(2), "returned Tensor"),
    ],
)
def test_a_loss_of_another_form_is_refused(returned, said):
    with pytest.raises(SsrError, match=f"loss 'mine' {said}"):
        Loss("mine", lambda _: returned).of("mine", None)


def test_half_precision_of_the_forward_pass_alone():
    exact, half = make(affinity_loss=0.1), make(affinity_loss=0.1, dtype=torch.bfloat16)
    for step in range(3):
        found, expected = take(half, micro_batch(step, (0, 1))), take(exact, micro_batch(step, (0, 1)))
        assert found["segmentation"] == pytest.approx(expected["segmentation"], rel=0.03)
        assert found["segmentation"] != expected["segmentation"]
        assert found["affinity"] == pytest.approx(expected["affinity"], rel=0.03)
    assert {parameter.dtype for parameter in half.decoder.parameters()} == {torch.float32}
    given = micro_batch(3, (0,))
    take(half, replace(given, tokens=given.tokens.bfloat16()))


# dropout


def factors(slots: tuple[int, ...], steps: int = 1, **options: Any) -> list[Tensor]:
    """Channel factors ``(B, E)`` of each step."""
    trainer = make(**{"dropout": 0.4, **options})
    torch.manual_seed(len(slots))  # the global generator has no say
    for step in range(steps):
        take(trainer, micro_batch(step, slots))
    found = trainer.decoder.channels
    assert all(channels is not None for channels in found)
    return [channels for channels in found if channels is not None]


def test_dropout_depends_on_seed_step_and_slot_alone():
    together = factors((0, 1, 2, 3), steps=3)
    for slots in ((0, 2), (3,)):
        alone = factors(slots, steps=3)
        for step in range(3):
            assert torch.equal(alone[step], together[step][list(slots)])
    rows = [tuple(row.tolist()) for step in together for row in step]
    assert len(set(rows)) > 9  # of twelve; eight channels may coincide
    assert not torch.equal(factors((0, 1, 2, 3), seed=1)[0], together[0])


def test_dropout_keeps_the_mean():
    trainer = make(dropout=0.25, hidden=4000)
    found = trainer._dropped(tuple(range(10)))
    assert found is not None
    assert found.shape == (10, 4000)
    assert found.unique().tolist() == [0.0, pytest.approx(4 / 3)]
    assert found.mean().item() == pytest.approx(1, abs=0.02)
    assert len({tuple(row.tolist()) for row in found}) == 10


def test_no_dropout_draws_nothing():
    trainer = make(dropout=0.0)
    take(trainer, micro_batch(0, (0,)))
    assert trainer.decoder.channels == [None]


# filter


@pytest.mark.parametrize(("filter_from", "filtered"), [(-1, []), (0, [0, 1, 2, 3]), (2, [2, 3]), (3, [3]), (4, [])])
@pytest.mark.parametrize("affinity_loss", [0.0, 0.1])
def test_filter_is_on_from_its_step_on(filter_from, filtered, affinity_loss):
    trainer = make(filter_from=filter_from, affinity_loss=affinity_loss, iterations=4)
    for step in range(4):
        given = micro_batch(step, (0, 1))
        assert trainer.filters == (step in filtered)
        state = trainer.forward(given.tokens, given.grid, given.slots)
        features = state.features.detach().flatten(2)  # (B, E, N)
        trainer.backward(state, given.targets)
        trainer.step()
        assert (state.affinity is not None) == (step in filtered or affinity_loss > 0)
        if step in filtered:
            assert state.filter_affinity is not None
            assert not state.filter_affinity.requires_grad
            torch.testing.assert_close(state.filter_affinity, (features.transpose(1, 2) @ features).sigmoid())
        else:
            assert state.filter_affinity is None


# state


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "everything": {"dropout": 0.3, "affinity_loss": 0.1, "filter_from": 3, "heads": True, "prototype_refresh": 3},
}


@pytest.mark.parametrize("stop", [0, 1, 3, 5, 7])
@pytest.mark.parametrize("name", OPTIONS)
def test_a_resumed_training_is_the_undisturbed_one(tmp_path, name, stop):
    options = OPTIONS[name]
    heads = bool(options.get("heads"))

    def steps(trainer: SegmentationTrainer, end: int) -> list[float]:
        slots = ((0, 1), (2,))
        return [
            take(trainer, *(micro_batch(step, own, heads) for own in slots))["segmentation"]
            for step in range(trainer.iteration, end)
        ]

    whole = make(**options)
    losses = steps(whole, 8)
    stopped = make(**options)
    first = steps(stopped, stop)
    write_checkpoint(tmp_path / "state.safetensors", stopped.state(), {})
    resumed = make(**options, seed=5)  # other weights before they are replaced
    if resumed.alignment is not None and whole.alignment is not None:
        resumed.alignment.text = whole.alignment.text
    resumed.restore(read_checkpoint(tmp_path / "state.safetensors", "")[0])
    assert resumed.iteration == stop
    resumed.options = whole.options
    torch.manual_seed(99)
    assert first + steps(resumed, 8) == losses
    found, expected = resumed.state(), whole.state()
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        assert torch.equal(found[key], tensor), key
