"""The training of CMPA's heads beside the decoder (SSR's joint loss), with prototypes of the samples since the last refresh."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.models.alignment import AlignmentHeads
from pipelines.ops.prototype_loss import weighted_pool
from pipelines.options.align import AlignOptions
from pipelines.training.alignment_loss import Batch, Prototypes, alignment_loss
from pipelines.training.processes import Processes


class OnlineAlignment:
    """L_proto of the crops of each step, and the prototypes for it.

    The heads' gradient comes from L_proto alone (labels are detached), and the decoder's comes from L_seg alone. Joint training
    differs from `ssr align` before `ssr train` in that labels follow the heads while these change.

    Args:
        heads: Heads on ``device``, which are trained further.
        prototypes: First prototypes, ``(C, E)``, L2-normalised.
        text: Class and background embeddings ``(C + M, E)``.
        options: Loss terms and their weights; prototypes are always those of classes.
        refresh: Number of steps between two refreshes of the prototypes.
        processes: This process and its peers.
    """

    def __init__(
        self,
        heads: AlignmentHeads,
        prototypes: Tensor,
        text: Tensor,
        options: AlignOptions,
        refresh: int,
        processes: Processes = Processes(),  # noqa: B008 - frozen
    ) -> None:
        self.heads, self.options, self.refresh_every, self.processes = heads, options, refresh, processes
        heads.requires_grad_(True)
        heads.log_temperature.requires_grad_(options.learn_temperature)
        device = heads.log_temperature.device
        self.prototypes, self.text = prototypes.to(device), text.to(device)
        self._sums = torch.zeros_like(self.prototypes)  # (C, E) of f_image since the last refresh, of all processes
        self._fresh = torch.zeros_like(self.prototypes)  # (C, E) of this step and process

    def loss(self, samples: Batch) -> Tensor:
        """Compute L_proto of some crops, and keep their image features for the next refresh."""
        self.heads.train()
        classes = len(self.prototypes)
        loss = alignment_loss(self.heads, samples, self.text, classes, Prototypes(self.prototypes), self.options)
        self.heads.eval()
        with torch.no_grad():
            pooled = weighted_pool(self.heads.isa(samples.tokens), samples.cams**self.options.cam_power)  # (B, K, E)
            filled = samples.classes >= 0  # (B, K)
            self._fresh.index_add_(0, samples.classes[filled], pooled[filled])
        return loss

    def finish_step(self, iteration: int) -> None:
        """Refresh the prototypes where due, after each step; a class without samples since the last refresh keeps its own."""
        self.processes.copy_from_first(self.heads.buffers())
        self._sums += self.processes.sum(self._fresh)  # at every step, so that the state of the first process is that of all
        self._fresh = torch.zeros_like(self._fresh)
        if iteration % self.refresh_every == 0:
            seen = self._sums.any(dim=1, keepdim=True)  # (C, 1)
            self.prototypes = torch.where(seen, F.normalize(self._sums, dim=1), self.prototypes)
            self._sums = torch.zeros_like(self._sums)

    def state(self) -> dict[str, Tensor]:
        """Return all tensors that `restore` needs, by name."""
        heads = {f"heads.{name}": tensor for name, tensor in self.heads.state_dict().items()}
        return heads | {"alignment.prototypes": self.prototypes, "alignment.sums": self._sums}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Restore a `state`."""
        self.heads.load_state_dict({k.removeprefix("heads."): v for k, v in tensors.items() if k.startswith("heads.")})
        self.prototypes = tensors["alignment.prototypes"].to(self.text.device)
        self._sums = tensors["alignment.sums"].to(self.text.device)
