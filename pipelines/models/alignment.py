"""The two alignment heads of CMPA: ISA for image tokens, TSA for text embeddings."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class ProjectionHead(nn.Module):
    """Stacked Linear + BatchNorm + ReLU, then a Linear (SSR's ISA and TSA).

    Args:
        width: Width E of the joint space, in and out.
        hidden: Width d2 between.
        residual: Whether to add the input. The last layer then starts at zero, so that an untrained head is the identity.
    """

    def __init__(self, width: int, hidden: int, residual: bool) -> None:
        super().__init__()
        self.residual = residual
        last = nn.Linear(hidden, width)
        self.layers = nn.Sequential(nn.Linear(width, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), last)
        if residual:
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Project ``(..., E)`` to ``(..., E)``, not normalised."""
        projected: Tensor = self.layers(x.reshape(-1, x.shape[-1])).view(x.shape)
        return x + projected if self.residual else projected


class AlignmentHeads(nn.Module):
    """ISA, TSA and the temperature.

    Args:
        width: Width E of CLIP's joint space.
        hidden: Width d2 inside the heads.
        residual: See `ProjectionHead`.
        temperature: Initial value; the logarithm is the parameter.
        learn_temperature: Whether to train the temperature.
    """

    def __init__(self, width: int, hidden: int, residual: bool, temperature: float, learn_temperature: bool) -> None:
        super().__init__()
        self.isa = ProjectionHead(width, hidden, residual)
        self.tsa = ProjectionHead(width, hidden, residual)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature)), requires_grad=learn_temperature)

    @property
    def temperature(self) -> Tensor:
        """The temperature, a positive scalar."""
        return self.log_temperature.exp()
