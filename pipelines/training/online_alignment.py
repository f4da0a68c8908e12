"""CMPA's heads trained on beside the decoder (SSR's joint loss), with prototypes from the samples since the last refresh."""

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
    """L_proto of the crops of each step.

    The heads' gradient comes from L_proto alone (labels are detached), the decoder's from L_seg alone: joint training differs
    from `ssr align` before `ssr train` in that labels follow the heads while they change.

    Args:
        heads: On ``device``; trained from now on.
        prototypes: ``(C, E)`` to begin with, L2-normalised.
        text: Class and background embeddings ``(C + M, E)``.
        options: Which loss, with which weights; class prototypes whatever it says.
        refresh: Steps between two refreshes of the prototypes.
        processes: This process among its peers.
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
        """L_proto of some crops; their image features are remembered for the next refresh."""
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
        """To be called after each step: refresh the prototypes if it is time; classes that nobody saw keep theirs."""
        self.processes.copy_from_first(self.heads.buffers())
        self._sums += self.processes.sum(self._fresh)  # every step: the state of the first process is that of all
        self._fresh = torch.zeros_like(self._fresh)
        if iteration % self.refresh_every == 0:
            seen = self._sums.any(dim=1, keepdim=True)  # (C, 1)
            self.prototypes = torch.where(seen, F.normalize(self._sums, dim=1), self.prototypes)
            self._sums = torch.zeros_like(self._sums)

    def state(self) -> dict[str, Tensor]:
        """Everything that `restore` needs, by name."""
        heads = {f"heads.{name}": tensor for name, tensor in self.heads.state_dict().items()}
        return heads | {"alignment.prototypes": self.prototypes, "alignment.sums": self._sums}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Take over a `state`."""
        self.heads.load_state_dict({k.removeprefix("heads."): v for k, v in tensors.items() if k.startswith("heads.")})
        self.prototypes = tensors["alignment.prototypes"].to(self.text.device)
        self._sums = tensors["alignment.sums"].to(self.text.device)
