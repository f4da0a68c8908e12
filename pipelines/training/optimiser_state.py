"""An optimiser's moments as named tensors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pipelines.errors import UsageError


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return an optimiser's moments by name, ``optimiser.INDEX.NAME``."""
    return {
        f"optimiser.{index}.{name}": torch.as_tensor(value)
        for index, moments in optimiser.state_dict()["state"].items()
        for name, value in moments.items()
    }


def restore_optimiser(optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Restore the moments that `optimiser_tensors` returned, which may be among other tensors.

    Raises:
        UsageError: The tensors are not the moments of this optimiser.
    """
    moments: dict[int, dict[str, Tensor]] = {}
    sizes = dict(enumerate(parameter.shape for group in optimiser.param_groups for parameter in group["params"]))
    for key, value in tensors.items():
        if key.startswith("optimiser."):
            index, _, name = key.removeprefix("optimiser.").partition(".")
            wanted = sizes.get(int(index)) if index.isdecimal() and len(index) < 9 else None
            sound = value.is_floating_point() and bool(torch.isfinite(value).all())
            if wanted is None or not sound or value.shape not in {wanted, torch.Size([])}:
                raise UsageError(f"the saved state is damaged: {key!r:.60} is not the optimiser's", "--resume never")
            moments.setdefault(int(index), {})[name] = value
    optimiser.load_state_dict({**optimiser.state_dict(), "state": moments})
