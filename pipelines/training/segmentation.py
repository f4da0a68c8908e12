"""The training of the segmentation decoder: schedule, losses over all processes, a state that can be resumed exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sized
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.models.decoder import SegmentationDecoder
from pipelines.ops.attention_filter import decoder_affinity
from pipelines.ops.label_map import IGNORE_INDEX
from pipelines.ops.segmentation_loss import affinity_halves, cross_entropy_halves, mean_of_halves
from pipelines.options.train import TrainOptions
from pipelines.training.alignment_loss import Batch
from pipelines.training.online_alignment import OnlineAlignment
from pipelines.training.optimiser_state import optimiser_tensors, restore_optimiser
from pipelines.training.processes import Processes


@dataclass(frozen=True)
class Targets:
    """What the crops of a part are trained towards.

    Attributes:
        labels: ``(B, S, S)`` int64, 255 ignored.
        samples: For L_proto: patch features, CAMs and classes; None where no heads are trained.
    """

    labels: Tensor
    samples: Batch | None = None


MakeTargets = Callable[[Tensor | None], Targets]
"""The decoder's affinity ``(B, N, N)``, or None before it filters attention -> targets."""


@dataclass(frozen=True)
class Part:
    """Some of a step's crops.

    Attributes:
        tokens: CLIP's tokens ``(L, B, N, D)``.
        grid: ``(h, w)`` with ``h * w == N``.
        slots: Place of each crop in the batch of all processes.
        targets: Makes their label maps.
    """

    tokens: Tensor
    grid: tuple[int, int]
    slots: tuple[int, ...]
    targets: MakeTargets


@dataclass(frozen=True)
class StepLosses:
    """Losses of one step in this process, means over its parts.

    Attributes:
        segmentation: Cross-entropy, background and foreground half each.
        affinity: Affinity loss before its weight; 0 if it has none.
        prototype: L_proto; 0 if no heads are trained.
        learning_rate: Of the decoder in this step.
    """

    segmentation: float
    affinity: float
    prototype: float
    learning_rate: float


class SegmentationTrainer:
    """Decoder and optimiser at one moment of the training.

    Args:
        decoder: What is trained, on ``device``.
        options: Schedule, losses, filter.
        device: Where to train.
        alignment: Heads that are trained beside it: ``L = L_proto + gamma L_seg`` (SSR).
        processes: This process among its peers; each brings its share of every batch.
        dtype: Of the forward pass; bf16 by autocast, parameters stay fp32.
    """

    def __init__(
        self,
        decoder: SegmentationDecoder,
        options: TrainOptions,
        device: torch.device,
        alignment: OnlineAlignment | None = None,
        processes: Processes = Processes(),  # noqa: B008 - frozen
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.decoder, self.options, self.device, self.processes, self.dtype = decoder, options, device, processes, dtype
        self.alignment = alignment
        groups = [{"params": list(decoder.parameters()), "lr": options.learning_rate}]
        if alignment is not None:
            trained = [parameter for parameter in alignment.heads.parameters() if parameter.requires_grad]
            decay = alignment.options.weight_decay
            groups.append({"params": trained, "lr": options.heads_learning_rate, "weight_decay": decay})
        self.optimiser = torch.optim.AdamW(groups, weight_decay=options.weight_decay)
        self._rates = [float(group["lr"]) for group in self.optimiser.param_groups]
        self.iteration = 0

    @property
    def filters(self) -> bool:
        """Whether the decoder's affinity filters attention in the step to come (WeCLIP's RFM)."""
        return 0 <= self.options.filter_from <= self.iteration

    @property
    def schedule(self) -> float:
        """Factor of all learning rates in the step to come: linear warm-up, then polynomial decay to 0."""
        options, step = self.options, self.iteration
        warmup = min(1.0, (step + 1) / options.warmup) if options.warmup else 1.0
        return float(warmup * (1 - step / options.iterations) ** options.poly)

    def step(self, parts: Iterable[Part | None], count: int | None = None) -> StepLosses:
        """Take one step.

        Args:
            parts: Of this process; None for one whose photos could not be used. All processes bring equally many. An iterator
                makes each when the one before is done with: memory for one.
            count: How many; None: those of a sequence.

        Returns:
            The losses, before the step.
        """
        for group, rate in zip(self.optimiser.param_groups, self._rates, strict=True):
            group["lr"] = rate * self.schedule
        trained = [parameter for group in self.optimiser.param_groups for parameter in group["params"]]
        for parameter in trained:  # a process without crops still takes part in the mean
            parameter.grad = torch.zeros_like(parameter)
        share = len(parts) if isinstance(parts, Sized) else count
        if share is None:
            raise TypeError("parts made one by one need their count")
        losses = [self._backward(part, share) for part in parts]
        self.processes.average_gradients(trained)
        self.optimiser.step()
        learning_rate = self.optimiser.param_groups[0]["lr"]
        self.iteration += 1
        if self.alignment is not None:
            self.alignment.finish_step(self.iteration)
        segmentation, affinity, prototype = torch.stack(losses).mean(dim=0).tolist()
        return StepLosses(segmentation, affinity, prototype, learning_rate)

    def _backward(self, part: Part | None, parts: int) -> Tensor:
        """Add a part's gradient; counts go over all processes, so that two of them equal one with twice the crops."""
        if part is None:
            self.processes.sum(torch.zeros(4, device=self.device))
            return torch.zeros(3)
        weight = self.options.affinity_loss
        self.decoder.train()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            logits, features = self.decoder(part.tokens.to(torch.float32), part.grid, self._dropped(part.slots))
        affinity = decoder_affinity(features) if weight or self.filters else None  # (B, N, N)
        targets = part.targets(affinity.detach() if affinity is not None and self.filters else None)
        labels = targets.labels  # (B, S, S)
        scores = F.interpolate(logits.float(), size=labels.shape[1:], mode="bilinear", align_corners=False)
        sums, counts = cross_entropy_halves(scores, labels)  # (2,), (2,)
        pair_sums, pair_counts = torch.zeros_like(sums), torch.zeros_like(counts)
        if weight and affinity is not None:
            small = F.interpolate(labels.unsqueeze(1).float(), size=part.grid, mode="nearest")[:, 0].long()  # (B, h, w)
            pair_sums, pair_counts = affinity_halves(affinity, small, self.options.affinity_radius, IGNORE_INDEX)
        total = self.processes.sum(torch.cat([counts, pair_counts]))  # (4,)
        segmentation = mean_of_halves(sums, total[:2])
        pairs = mean_of_halves(pair_sums, total[2:] + 1)
        loss = (segmentation + weight * pairs) * self.processes.count
        prototype = torch.zeros((), device=self.device)
        if self.alignment is not None and targets.samples is not None:
            prototype = self.alignment.loss(targets.samples)
            loss = prototype + self.options.gamma * loss
        (loss / parts).backward()  # type: ignore[no-untyped-call]
        shared = torch.stack([segmentation, pairs]) * self.processes.count
        return torch.cat([shared, prototype.view(1)]).detach().cpu()

    def _dropped(self, slots: tuple[int, ...]) -> Tensor | None:
        """Dropout factors of whole channels ``(B, E)``, the same for equal seed, step and slot in however many processes."""
        share = self.options.dropout
        if not share:
            return None
        rows: list[Tensor] = []
        for slot in slots:
            seed = (self.options.seed * 1_000_003 + self.iteration) * 65_537 + slot
            draw = torch.rand(self.options.hidden, generator=torch.Generator().manual_seed(seed % 2**63))
            rows.append((draw >= share).float() / (1 - share))
        return torch.stack(rows).to(self.device)

    def state(self) -> dict[str, Tensor]:
        """Everything that `restore` needs, by name; live tensors, to be written before the next step."""
        tensors = {f"decoder.{name}": tensor for name, tensor in self.decoder.state_dict().items()}
        tensors |= self.alignment.state() if self.alignment is not None else {}
        return tensors | optimiser_tensors(self.optimiser) | {"iteration": torch.tensor(self.iteration)}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take over a `state` of the same photos and options: the steps that follow are those of an undisturbed run."""
        decoder = {k.removeprefix("decoder."): v for k, v in tensors.items() if k.startswith("decoder.")}
        self.decoder.load_state_dict(decoder)
        if self.alignment is not None:
            self.alignment.restore(tensors)
        restore_optimiser(self.optimiser, tensors)
        self.iteration = int(tensors["iteration"])
