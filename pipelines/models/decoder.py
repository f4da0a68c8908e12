"""Segmentation decoder on the frozen CLIP: it maps tokens of many blocks to logits at stride 16 (WeCLIP, CVPR 2024)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pipelines.models.text_classifier import TextClassifier


class SegmentationDecoder(nn.Module):
    """A decoder of one MLP for each CLIP block, their fusion, a light transformer and a 1x1 classifier.

    Args:
        blocks: Number L of CLIP blocks whose tokens it takes.
        width: Width D of these tokens.
        classes: Number C of foreground classes.
        hidden: Width E of all layers behind the MLPs.
        layers: Number of transformer layers.
        heads: Number of attention heads of each layer; must divide ``hidden``.
        text: Classifier whose log-probabilities are added to the logits, each class with a trained factor; in evaluation mode
            its `image_gate` is added too. None adds nothing. With it the last of the CLIP blocks must be the tower's last.

    Attributes:
        sizes: The numbers among the arguments from which a file's decoder is rebuilt.
        text: The classifier, or None.
    """

    def __init__(
        self,
        blocks: int,
        width: int,
        classes: int,
        hidden: int = 256,
        layers: int = 3,
        heads: int = 8,
        text: TextClassifier | None = None,
    ) -> None:
        super().__init__()
        self.sizes = {
            "blocks": blocks, "width": width, "classes": classes, "hidden": hidden, "layers": layers, "heads": heads
        }  # fmt: skip
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, hidden)) for _ in range(blocks)
        )
        self.fusion = nn.Linear(blocks * hidden, hidden)
        self.transformer = nn.ModuleList(
            nn.TransformerEncoderLayer(
                hidden, heads, 4 * hidden, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(layers)
        )
        self.classifier = nn.Linear(hidden, classes + 1)
        self.text = text
        self.text_weight = None if text is None else nn.Parameter(torch.ones(classes + 1))

    def forward(
        self, tokens: Tensor, grid: tuple[int, int], channels: Tensor | None = None, joint: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Compute logits, and the features whose products are the decoder's affinity.

        Args:
            tokens: ``(L, B, N, D)`` without CLS.
            grid: ``(h, w)`` with ``h * w == N``.
            channels: Factors of the fused channels ``(B, E)``: a dropout mask of the caller.
            joint: The last block's tokens in CLIP's joint space, ``(B, N, E')``; read by ``text`` alone.

        Returns:
            Logits ``(B, C + 1, h, w)``, background first, and fused features ``(B, E, h, w)``.
        """
        found = [mlp(block) for mlp, block in zip(self.mlps, tokens, strict=True)]  # L x (B, N, E)
        fused = self.fusion(torch.cat(found, dim=-1))  # (B, N, E)
        x = fused if channels is None else fused * channels.unsqueeze(1)  # (B, N, E)
        for layer in self.transformer:
            x = layer(x)
        logits = self.classifier(x)  # (B, N, C + 1)
        if self.text is not None and self.text_weight is not None:
            assert joint is not None  # noqa: S101 - callers know the decoder
            scores = self.text(joint)  # (B, N, C + 1)
            logits = logits + self.text_weight * scores  # (B, N, C + 1)
            if not self.training:  # crops do not show all that their image shows
                logits = logits + self.text.image_gate(scores)  # (B, N, C + 1)
        return _on_grid(logits, grid), _on_grid(fused, grid)


def _on_grid(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Reshape ``(B, N, E)`` to ``(B, E, h, w)``."""
    return tokens.transpose(1, 2).reshape(tokens.shape[0], -1, *grid)
