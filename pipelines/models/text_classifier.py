"""Class scores of a patch from the names of the classes: the part of a segmentation decoder that knows what the words mean."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_linear_bn_eval

from pipelines.models.alignment import AlignmentHeads

BEST = 20
"""One patch in so many, rounded up, is among the best, whose mean probability is the score of a class in an image."""


class TextClassifier(nn.Module):
    """The softmax over class names and background words of a patch behind a frozen image head (CMPA's ISA).

    Its weights are never trained: a class with few training images keeps what CLIP knows of its name.

    Args:
        width: Width E of CLIP's joint space.
        hidden: Width inside the head.
        residual: Whether the head adds its input.
        classes: Number C of foreground classes.
        words: Number M of background words, at least 1.

    Attributes:
        sizes: The arguments from which a file's classifier is rebuilt.
    """

    text: Tensor
    scale: Tensor
    threshold: Tensor

    def __init__(self, width: int, hidden: int, residual: bool, classes: int, words: int) -> None:
        super().__init__()
        self.sizes = {"width": width, "hidden": hidden, "residual": residual, "classes": classes, "words": words}
        self.residual, self.classes = residual, classes
        self.head = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width))
        self.register_buffer("text", torch.zeros(classes + words, width))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("threshold", torch.ones(()))
        self.requires_grad_(False)

    @classmethod
    def of(cls, heads: AlignmentHeads, text: Tensor, classes: int, scale: float, threshold: float) -> TextClassifier:
        """Return the classifier of trained alignment heads.

        Args:
            heads: Heads in evaluation mode; the statistics of their BatchNorm become part of the first layer.
            text: Class and background embeddings behind the text head, ``(C + M, E)``, L2-normalised, classes first.
            classes: Number C of classes.
            scale: Factor of the cosines in the softmax.
            threshold: Score from which an image seems to show a class, in (0, 1].
        """
        linear, norm, _, last = heads.isa.layers
        assert isinstance(linear, nn.Linear) and isinstance(norm, nn.BatchNorm1d)  # noqa: S101, PT018 - what a head is made of
        classifier = cls(text.shape[1], linear.out_features, heads.isa.residual, classes, len(text) - classes)
        classifier.head[0].load_state_dict(fuse_linear_bn_eval(linear, norm).state_dict())
        classifier.head[2].load_state_dict(last.state_dict())
        classifier.text.copy_(text)
        classifier.scale.fill_(scale)
        classifier.threshold.fill_(threshold)
        return classifier.to(text.device)

    def forward(self, joint: Tensor) -> Tensor:
        """Compute the logarithm of the class probabilities.

        Args:
            joint: Patches in CLIP's joint space, ``(B, N, E)``, not L2-normalised.

        Returns:
            ``(B, N, C + 1)``, at most 0, background first, which is the sum over the background words.
        """
        projected: Tensor = self.head(joint)  # (B, N, E)
        features = F.normalize(joint + projected if self.residual else projected, dim=-1)  # (B, N, E)
        logits = (self.scale * features @ self.text.T).log_softmax(dim=-1)  # (B, N, C + M)
        background = logits[..., self.classes :].logsumexp(dim=-1, keepdim=True)  # (B, N, 1)
        return torch.cat([background, logits[..., : self.classes]], dim=-1)

    def image_gate(self, log_probabilities: Tensor) -> Tensor:
        """Compute what lowers the logits of classes that the image does not seem to show, the same for all its patches.

        The score of a class is the mean of its best patches. From the threshold on, or for the best class of the image, nothing
        is added; below, the class's probabilities are multiplied by score / threshold.

        Args:
            log_probabilities: Output of `forward`, ``(B, N, C + 1)``.

        Returns:
            ``(B, 1, C + 1)``, at most 0; 0 for the background.
        """
        count = (log_probabilities.shape[1] + BEST - 1) // BEST  # of whole numbers, which an exporter can follow
        scores = log_probabilities[..., 1:].exp().topk(count, dim=1).values.mean(dim=1)  # (B, C)
        threshold = torch.minimum(scores.amax(dim=-1, keepdim=True), self.threshold)  # (B, 1)
        share = (scores / threshold.clamp_min(1e-9)).clamp(1e-6, 1.0)  # (B, C)
        return F.pad(share.log(), (1, 0)).unsqueeze(1)  # (B, 1, C + 1)
