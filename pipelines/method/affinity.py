"""Affinities between patches, from the encoders' attention. `AFFINITIES` is the table behind ``--affinity``."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from pipelines.errors import UsageError
from pipelines.method.evidence import Evidence, Need, Needs, Part
from pipelines.ops.affinity import fuse_attention, normalise_rows, sinkhorn
from pipelines.options.stages import RefineOptions
from pipelines.plugins import Table

Affinity = Callable[[Evidence, RefineOptions], Tensor]
"""Evidence and options -> ``(B, N, N)``, row = receiver, column = source."""

_ATTENTION = ("clip_blocks", "dino_blocks", "dino_weight", "symmetrise")


def attention_needs(options: RefineOptions) -> Needs:
    """Return the names of the attentions that contribute to the affinity.

    Raises:
        UsageError: No attention contributes.
    """
    shares: dict[Need, bool] = {
        "clip_attention": options.clip_blocks > 0 and options.dino_weight < 1,
        "dino_attention": options.dino_blocks > 0 and options.dino_weight > 0,
    }
    needs: Needs = frozenset(name for name, has_share in shares.items() if has_share)
    if not needs:
        raise UsageError(
            "no attention left: clip_blocks and dino_blocks are both unused", "--clip-blocks, --dino-blocks, --dino-weight"
        )
    return needs


def fused_attention(evidence: Evidence, options: RefineOptions) -> Tensor:
    """Fuse CLIP's and DINO's attention with ``dino_weight`` (SSR, Eq. 9), ``(B, N, N)``; a single one is returned unchanged."""
    needs = attention_needs(options)
    clip = evidence.clip_attention if "clip_attention" in needs else None
    dino = evidence.dino_attention if "dino_attention" in needs else None
    return fuse_attention(clip, dino, options.dino_weight)


def row(evidence: Evidence, options: RefineOptions) -> Tensor:
    """Compute an affinity whose rows sum to 1, ``(B, N, N)``."""
    return _symmetrised(normalise_rows(fused_attention(evidence, options)), options)


def doubly_stochastic(evidence: Evidence, options: RefineOptions) -> Tensor:
    """Normalise the attention by Sinkhorn's algorithm (CLIP-ES, Eq. 6), ``(B, N, N)``."""
    return _symmetrised(sinkhorn(fused_attention(evidence, options), options.sinkhorn_rounds), options)


def _symmetrised(affinity: Tensor, options: RefineOptions) -> Tensor:
    return (affinity + affinity.transpose(-2, -1)) / 2 if options.symmetrise else affinity


AFFINITIES: Table[Part[Affinity, RefineOptions]] = Table(
    "affinity",
    Part,
    {
        "row": Part(row, attention_needs, _ATTENTION),
        "sinkhorn": Part(doubly_stochastic, attention_needs, (*_ATTENTION, "sinkhorn_rounds")),
    },
)
