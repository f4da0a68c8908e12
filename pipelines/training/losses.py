"""The losses of `ssr train`, in a table: what each needs, its weight, and its sum over processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.errors import SsrError, UsageError
from pipelines.ops.label_map import IGNORE_INDEX
from pipelines.ops.segmentation_loss import affinity_halves, cross_entropy_halves, mean_of_means
from pipelines.ops.super_class_maps import dice_losses, super_probabilities, supers_predicted
from pipelines.options.train import TrainOptions
from pipelines.plugins import Table, called, table_entry
from pipelines.training.alignment_loss import Batch
from pipelines.training.online_alignment import OnlineAlignment


@dataclass(frozen=True)
class DecoderState:
    """The decoder's output for a micro-batch.

    Attributes:
        logits: ``(B, C + 1, h, w)``, background first; bf16 under autocast.
        features: Fused features ``(B, E, h, w)``.
        grid: Token grid ``(h, w)``.
        affinity: The decoder's affinity ``(B, N, N)`` in (0, 1); None if no loss and no filter needs it.
        filter_affinity: The same, detached, in steps in which it filters CLIP's attention (WeCLIP's RFM); None in other steps.
    """

    logits: Tensor
    features: Tensor
    grid: tuple[int, int]
    affinity: Tensor | None
    filter_affinity: Tensor | None


@dataclass(frozen=True)
class Targets:
    """The targets of a micro-batch.

    Attributes:
        labels: ``(B, S, S)`` int64: 0 background, ``i + 1`` for class i, 255 ignored.
        samples: Patch features, CAMs and classes for losses that train the alignment heads; None without such heads.
        super_maps: Maps of super-classes, ``(B, S, N)`` in [0, 1], -1 where nothing is known; None if no loss needs them.
        super_of_class: Super-class of each class, ``(C,)`` int64; present together with ``super_maps``.
    """

    labels: Tensor
    samples: Batch | None = None
    super_maps: Tensor | None = None
    super_of_class: Tensor | None = None


class CropPixels(Protocol):
    """The fields of a crop that a loss may read, beside its labels; see `pipelines.method.photo.Crop`."""

    @property
    def image(self) -> Tensor:
        """``(3, S, S)`` fp32 RGB in [0, 255], on the CPU."""

    @property
    def valid(self) -> Tensor:
        """``(S, S)`` bool: pixels of the image, not of the padding."""

    @property
    def photo(self) -> Any:
        """The crop resized for the encoders: image id, labels, and superpixels on the token grid if an option needs them."""


@dataclass(frozen=True)
class TrainingState:
    """All that a loss may read: one micro-batch of one process.

    Attributes:
        decoder: The decoder's output, with gradient.
        targets: The targets of the micro-batch.
        crops: The crops themselves, in the order of the batch.
        options: Options of the training.
        alignment: The heads that are trained beside the decoder, or None.
    """

    decoder: DecoderState
    targets: Targets
    crops: Sequence[CropPixels]
    options: TrainOptions
    alignment: OnlineAlignment | None


@dataclass(frozen=True)
class Loss:
    """An entry of `LOSSES`.

    Attributes:
        label: Its name in the log and in the figure of the curves.
        sums_and_counts: Maps the state of a micro-batch to sums ``(size,)`` with gradient, and their divisors ``(size,)``.
            Counts are summed over all processes before the division, so that two processes equal one with twice the crops.
        size: Number of sums.
        mean: Maps the sums of this process and the counts of all to the loss, a scalar.
        weight: Maps options to the weight, 0 = off; None: the weight is that of ``--loss NAME=WEIGHT``, or 0 without the flag.
        needs: ``decoder_affinity``, ``samples``, ``super_maps``: fields of the state that must not be None.
        crops: Whether it reads ``crops``, which cached views do not hold.
        trains: The module that its gradient trains. With heads, the total is the heads' losses + gamma times the decoder's.
    """

    label: str
    sums_and_counts: Callable[[TrainingState], tuple[Tensor, Tensor]]
    size: int = 1
    mean: Callable[[Tensor, Tensor], Tensor] = mean_of_means
    weight: Callable[[TrainOptions], float] | None = None
    needs: frozenset[str] = frozenset()
    crops: bool = True
    trains: Literal["decoder", "heads"] = "decoder"

    def of(self, name: str, state: TrainingState) -> tuple[Tensor, Tensor]:
        """Return its sums and counts of a micro-batch, ``(size,)`` each.

        Raises:
            SsrError: It returned something else, or is of a plugin and raised an error.
        """
        result = called(f"loss {name!r}", self.sums_and_counts, state)
        pair = isinstance(result, tuple) and len(result) == 2 and all(isinstance(one, Tensor) for one in result)
        if not pair or any(tuple(one.shape) != (self.size,) for one in result):
            seen = " and ".join(str(tuple(one.shape)) for one in result) if pair else type(result).__name__
            hint = f"Loss(..., size=n) for n of them; it has size={self.size}"
            raise SsrError(f"loss {name!r} returned {seen}, expected sums and counts ({self.size},) each", hint)
        return result


def _segmentation(state: TrainingState) -> tuple[Tensor, Tensor]:
    """Sum the cross-entropy over background pixels and over foreground pixels of the crops."""
    labels = state.targets.labels  # (B, S, S)
    logits = state.decoder.logits.float()  # (B, C + 1, h, w)
    scores = F.interpolate(logits, size=labels.shape[1:], mode="bilinear", align_corners=False)  # (B, C + 1, S, S)
    return cross_entropy_halves(scores, labels, IGNORE_INDEX)


def _affinity(state: TrainingState) -> tuple[Tensor, Tensor]:
    """Sum WeCLIP's affinity loss, which makes tokens of one class alike and tokens of two classes unlike."""
    decoder = state.decoder
    assert decoder.affinity is not None  # noqa: S101 - the entry needs it
    labels = state.targets.labels.unsqueeze(1).float()  # (B, 1, S, S)
    small = F.interpolate(labels, size=decoder.grid, mode="nearest")[:, 0].long()  # (B, h, w)
    return affinity_halves(decoder.affinity, small, state.options.affinity_radius, IGNORE_INDEX)


def _prototype(state: TrainingState) -> tuple[Tensor, Tensor]:
    """Compute L_proto, a mean over this process's samples; processes count equally."""
    samples = state.targets.samples
    if state.alignment is None or samples is None:
        nothing = state.decoder.logits.new_zeros(1, dtype=torch.float32)
        return nothing, nothing
    loss = state.alignment.loss(samples).view(1)
    return loss, torch.ones_like(loss)


def _super_class_boundary(state: TrainingState) -> tuple[Tensor, Tensor]:
    """Sum the Dice loss of super-classes' probabilities and maps, over crops in which two or more are predicted (CD-CLIP)."""
    maps, of_class = state.targets.super_maps, state.targets.super_of_class
    assert maps is not None and of_class is not None  # noqa: S101, PT018 - the entry needs them
    logits = state.decoder.logits.float().flatten(2)  # (B, C + 1, N)
    known, count = (maps >= 0).any(dim=1), maps.shape[1]  # (B, N)
    meet = supers_predicted(logits.detach(), of_class, count, known) >= 2  # (B,)
    losses = dice_losses(super_probabilities(logits, of_class, count), maps)  # (B,)
    return (losses * meet).sum().view(1), meet.sum().view(1).to(losses.dtype)


LOSSES: Table[Loss] = Table(
    "loss",
    Loss,
    {
        "segmentation": Loss("cross-entropy", _segmentation, size=2, weight=lambda _: 1.0),
        "affinity": Loss(
            "affinity loss",
            _affinity,
            size=2,
            mean=lambda sums, counts: mean_of_means(sums, counts + 1),  # + 1 as in the authors' code
            weight=lambda options: options.affinity_loss,
            needs=frozenset({"decoder_affinity"}),
        ),
        "prototype": Loss(
            "L_proto",
            _prototype,
            weight=lambda options: float(options.train_heads),
            needs=frozenset({"samples"}),
            trains="heads",
        ),
        "sbe": Loss("super-class borders", _super_class_boundary, needs=frozenset({"super_maps"}), crops=False),
    },
)
"""Losses by name. A plugin adds an entry, and ``--loss NAME=WEIGHT`` switches it on."""

NEEDS = frozenset({"decoder_affinity", "samples", "super_maps"})
"""Names of all fields that an entry of `LOSSES` may need."""


def active_losses(options: TrainOptions) -> dict[str, tuple[Loss, float]]:
    """Return the losses of a training and their weights, by name.

    Raises:
        UsageError: ``--loss`` names a loss that is not in the table, whose weight other options set, or whose needs are unmet.
    """
    for name in options.losses:
        entry = table_entry(LOSSES, name, "--loss")
        if entry.weight is not None:
            raise UsageError(f"the weight of {name!r} is set by other options", "--loss is for further losses")
        if not entry.needs <= NEEDS:
            raise UsageError(f"loss {name!r} needs {', '.join(sorted(entry.needs - NEEDS))}, which no training has", "--loss")
        if "samples" in entry.needs and not options.train_heads:
            raise UsageError(f"loss {name!r} learns from samples of alignment heads that are trained", "--train-heads")
        if "super_maps" in entry.needs and options.losses[name] and options.supervision == "masks":
            raise UsageError(f"loss {name!r} learns from CAMs, which supervision masks does not make", f"--loss {name}=0")
    weights = {
        name: options.losses.get(name, 0.0) if loss.weight is None else loss.weight(options) for name, loss in LOSSES.items()
    }
    return {name: (LOSSES[name], weight) for name, weight in weights.items() if weight}


def needs_super_maps(options: TrainOptions) -> bool:
    """Return whether a loss of the training reads super-class maps."""
    return any("super_maps" in loss.needs for loss, _ in active_losses(options).values())


def total_loss(losses: Mapping[str, tuple[Loss, float]], values: Mapping[str, Tensor], gamma: float) -> Tensor:
    """Sum the weighted losses; with losses of alignment heads, ``L = L_heads + gamma L_decoder`` (SSR).

    Args:
        losses: Active losses and weights.
        values: Value of each loss, a scalar.
        gamma: Weight of all losses of the decoder beside those of heads.
    """
    terms = {
        part: [weight * values[name] for name, (loss, weight) in losses.items() if loss.trains == part]
        for part in ("decoder", "heads")
    }
    decoder = torch.stack(terms["decoder"]).sum()
    return torch.stack(terms["heads"]).sum() + gamma * decoder if terms["heads"] else decoder


def column_names(options: TrainOptions) -> dict[str, str]:
    """Return the losses of a line of the curves and their labels: the package's own, 0 where off, and those switched on."""
    active = active_losses(options)
    return {name: loss.label for name, loss in LOSSES.items() if loss.weight is not None or name in active}
