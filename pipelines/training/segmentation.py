"""The training of the segmentation decoder: schedule, losses over all processes, and a state that can be resumed exactly."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pipelines.models.decoder import SegmentationDecoder
from pipelines.ops.attention_filter import decoder_affinity
from pipelines.options.train import TrainOptions
from pipelines.training.losses import CropPixels, DecoderState, Targets, TrainingState, active_losses, column_names, total_loss
from pipelines.training.online_alignment import OnlineAlignment
from pipelines.training.optimiser_state import optimiser_tensors, restore_optimiser
from pipelines.training.processes import Processes

StepLosses = dict[str, float]
"""Losses of one step before their weights, by the names of `pipelines.training.losses.LOSSES`, and ``learning_rate``.

Each is the mean over this process's micro-batches; one of the package's own losses that is off is 0.
"""


class SegmentationTrainer:
    """The decoder and the optimiser at one moment of the training.

    A step calls `forward` for each micro-batch, then `backward` with the targets, or `skip` if it has no crops; then `step`.

    Args:
        decoder: The decoder to train, on ``device``.
        options: Schedule, losses, filter.
        device: Where to train.
        alignment: Heads that are trained beside it: ``L = L_proto + gamma L_seg`` (SSR).
        processes: This process and its peers; each brings its share of every batch.
        dtype: Precision of the forward pass; bf16 by autocast, parameters stay fp32.
        micro_batches: Number of micro-batches per step, the same in each process.
        project: Maps output tokens of CLIP's last block, ``(B, N, D)``, into its joint space, ``(B, N, E)``; necessary for a
            decoder with a text classifier, and read by no other.

    Raises:
        UsageError: ``options.losses`` names a loss that cannot be computed.
    """

    def __init__(  # noqa: PLR0913 - the parts of a training, each of which its caller makes
        self,
        decoder: SegmentationDecoder,
        options: TrainOptions,
        device: torch.device,
        alignment: OnlineAlignment | None = None,
        processes: Processes = Processes(),  # noqa: B008 - frozen
        dtype: torch.dtype = torch.float32,
        micro_batches: int = 1,
        project: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.project = project if decoder.text is not None else None
        self.decoder, self.options, self.device, self.processes, self.dtype = decoder, options, device, processes, dtype
        self.alignment, self.micro_batches = alignment, micro_batches
        self.losses, self._columns = active_losses(options), column_names(options)
        self._needs = frozenset[str]().union(*(loss.needs for loss, _ in self.losses.values()))
        groups = [{"params": [p for p in decoder.parameters() if p.requires_grad], "lr": options.learning_rate}]
        if alignment is not None:
            trained = [parameter for parameter in alignment.heads.parameters() if parameter.requires_grad]
            decay = alignment.options.weight_decay
            groups.append({"params": trained, "lr": options.heads_learning_rate, "weight_decay": decay})
        self.optimiser = torch.optim.AdamW(groups, weight_decay=options.weight_decay)
        self._rates = [float(group["lr"]) for group in self.optimiser.param_groups]
        self.iteration = 0
        self._values: list[Tensor] = []  # one tensor per micro-batch of the step so far, (losses,)

    @property
    def filters(self) -> bool:
        """Whether the decoder's affinity filters attention in the next step (WeCLIP's RFM)."""
        return 0 <= self.options.filter_from <= self.iteration

    @property
    def schedule(self) -> float:
        """Factor of all learning rates in the next step: linear warm-up, then polynomial decay to 0."""
        options, step = self.options, self.iteration
        warmup = min(1.0, (step + 1) / options.warmup) if options.warmup else 1.0
        return float(warmup * (1 - step / options.iterations) ** options.poly)

    def forward(self, tokens: Tensor, grid: tuple[int, int], slots: Sequence[int]) -> DecoderState:
        """Run the decoder on a micro-batch.

        Args:
            tokens: CLIP's tokens ``(L, B, N, D)`` of at least as many blocks as the decoder reads; it reads the first ones.
            grid: ``(h, w)`` with ``h * w == N``.
            slots: Place of each crop in the batch of all processes; the seed of the crop's dropout.
        """
        self.decoder.train()
        joint = None if self.project is None else self.project(tokens[-1].float())  # (B, N, E)
        tokens = tokens[: self.decoder.sizes["blocks"]].to(self.dtype)  # (L, B, N, D)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            logits, features = self.decoder(tokens, grid, self._dropped(slots), joint)
        affinity = decoder_affinity(features) if self.filters or "decoder_affinity" in self._needs else None  # (B, N, N)
        detached = affinity.detach() if affinity is not None and self.filters else None
        return DecoderState(logits, features, grid, affinity, detached)

    def backward(self, decoder: DecoderState, targets: Targets, crops: Sequence[CropPixels] = ()) -> None:
        """Add the gradient of a micro-batch. Counts are summed over all processes, so that two equal one with twice the crops.

        Args:
            decoder: Output of `forward`.
            targets: Label maps, and samples if heads are trained.
            crops: The crops, for losses that read pixels or superpixels.
        """
        self._begin_step()
        state = TrainingState(decoder, targets, crops, self.options, self.alignment)
        sums, counts = {}, {}
        for name, (loss, _) in self.losses.items():
            sums[name], counts[name] = loss.of(name, state)  # (size,), (size,)
        of_all = torch.split(self.processes.sum(torch.cat(list(counts.values()))), [len(count) for count in counts.values()])
        values = {
            name: loss.mean(sums[name], count) * self.processes.count  # the gradient is a mean over processes
            for (name, (loss, _)), count in zip(self.losses.items(), of_all, strict=True)
        }
        total = total_loss(self.losses, values, self.options.gamma)
        (total / self.micro_batches).backward()  # type: ignore[no-untyped-call]
        self._values.append(torch.stack([value.detach() for value in values.values()]))

    def skip(self) -> None:
        """Count a micro-batch without crops; this process still takes part in the sums over all processes."""
        self._begin_step()
        self.processes.sum(torch.zeros(sum(loss.size for loss, _ in self.losses.values()), device=self.device))
        self._values.append(torch.zeros(len(self.losses), device=self.device))

    def _begin_step(self) -> None:
        """Set all gradients to zero before a step's first micro-batch, so that missing ones count as zero in the mean."""
        if not self._values:
            for parameter in self._trained:
                parameter.grad = torch.zeros_like(parameter)

    @property
    def _trained(self) -> list[torch.nn.Parameter]:
        return [parameter for group in self.optimiser.param_groups for parameter in group["params"]]

    def step(self) -> StepLosses:
        """Update the weights by the gradients of the step's micro-batches.

        Returns:
            The losses before the update.

        Raises:
            ValueError: There were more or fewer micro-batches than ``micro_batches``.
        """
        if len(self._values) != self.micro_batches:
            raise ValueError(f"expected {self.micro_batches} micro-batches a step, found {len(self._values)}")
        for group, rate in zip(self.optimiser.param_groups, self._rates, strict=True):
            group["lr"] = rate * self.schedule
        self.processes.average_gradients(self._trained)
        self.optimiser.step()
        self.iteration += 1
        if self.alignment is not None:
            self.alignment.finish_step(self.iteration)
        means = torch.stack(self._values).cpu().mean(dim=0).tolist()
        self._values = []
        values = dict(zip(self.losses, means, strict=True))
        learning_rate = float(self.optimiser.param_groups[0]["lr"])
        return {name: values.get(name, 0.0) for name in self._columns} | {"learning_rate": learning_rate}

    def _dropped(self, slots: Sequence[int]) -> Tensor | None:
        """Draw dropout factors of whole channels ``(B, E)``, equal for equal seed, step and slot in any number of processes."""
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
        """Return all tensors that `restore` needs, by name. They are no copies: write them before the next step."""
        tensors = {f"decoder.{name}": tensor for name, tensor in self.decoder.state_dict().items()}
        tensors |= self.alignment.state() if self.alignment is not None else {}
        return tensors | optimiser_tensors(self.optimiser) | {"iteration": torch.tensor(self.iteration)}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Restore a `state` of the same images and options; the following steps are those of an uninterrupted run."""
        decoder = {k.removeprefix("decoder."): v for k, v in tensors.items() if k.startswith("decoder.")}
        self.decoder.load_state_dict(decoder)
        if self.alignment is not None:
            self.alignment.restore(tensors)
        restore_optimiser(self.optimiser, tensors)
        self.iteration = int(tensors["iteration"])
