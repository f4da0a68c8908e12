"""Affinity filters, which weaken affinities of unlike patches. `AFFINITY_FILTERS` is the table behind ``--affinity-filter``."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pipelines.method.evidence import Evidence, Part, always
from pipelines.ops.affinity import normalise_rows
from pipelines.ops.class_distribution import class_distributions, jensen_shannon, similarity_weights
from pipelines.options.stages import RefineOptions
from pipelines.plugins import Table

AffinityFilter = Callable[[Evidence, Tensor, RefineOptions], Tensor]
"""Evidence, affinity ``(B, N, N)`` and options -> another affinity of that shape, row = receiver."""


@torch.no_grad()
def cda(evidence: Evidence, affinity: Tensor, options: RefineOptions) -> Tensor:
    """Multiply the affinity by softmax((1 - JS) / tau) of the patches' class distributions (CD-CLIP); rows sum to 1."""
    text, tail = evidence.text, evidence.tail
    names = (
        text.all[: text.classes] if text.supers is None else torch.cat([text.all[: text.classes], text.supers])
    )  # (C + S, E)
    read = tail.value_features if options.cda_features == "value" else tail.features
    features = read(evidence.tokens_cls, tail.normalise(evidence.tokens_cls))  # (B, N, E)
    valid = evidence.valid if "valid" in evidence else None
    divergence = jensen_shannon(class_distributions(features, names, options.cda_scale, valid))  # (B, N, N)
    weights = similarity_weights(divergence, options.cda_kappa, options.cda_tau, valid)  # (B, N, N)
    matrix = options.cda_product == "matrix"
    return normalise_rows(weights) @ affinity if matrix else normalise_rows(weights * affinity)


AFFINITY_FILTERS: Table[Part[AffinityFilter, RefineOptions]] = Table(
    "affinity filter",
    Part,
    {
        "cda": Part(
            cda,
            always("tokens_cls", "text", "super_classes"),
            ("cda_features", "cda_scale", "cda_kappa", "cda_tau", "cda_product"),
        ),
    },
)
