"""Pseudo-masks made while the decoder trains: CAM, affinity and masks as in `ssr refine`, on crops, in batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.method.affinity import attention_needs
from pipelines.method.aligned import head_features
from pipelines.method.composition import initial_cams, refined_cams
from pipelines.method.evidence import Evidence
from pipelines.method.photo import Crop
from pipelines.method.super_maps import super_maps
from pipelines.ops.attention_filter import filter_attention
from pipelines.ops.label_map import IGNORE_INDEX
from pipelines.ops.online_label_map import background_first, online_label_map
from pipelines.ops.par import refinement_at_scale, resized, scaled_size
from pipelines.ops.transfer import sent
from pipelines.options.stages import CamsOptions, RefineOptions
from pipelines.options.train import TrainOptions
from pipelines.training.alignment_loss import Batch
from pipelines.training.losses import Targets, needs_super_maps


@dataclass(frozen=True)
class OnlineLabels:
    """A maker of label maps for batches of crops.

    Attributes:
        cams: Read-out of the initial CAM.
        refine: Affinity, masks, propagation, background rule, confidence.
        options: Filter and pixel-adaptive refinement.
    """

    cams: CamsOptions
    refine: RefineOptions
    options: TrainOptions

    @torch.no_grad()
    def __call__(self, crops: Sequence[Crop], evidence: Evidence, decoder_affinity: Tensor | None = None) -> Targets:
        """Return label maps, and the targets of L_proto and of the super-class loss if these are on.

        Args:
            crops: A batch of B crops of side S.
            evidence: The encoders' outputs for the crops.
            decoder_affinity: ``(B, N, N)`` in [0, 1]: filters CLIP's attention (WeCLIP's RFM); None: no filter.

        Returns:
            Labels ``(B, S, S)``: 0 background, ``i + 1`` for class i, 255 where padded or not confident. A crop with a target
            has that target as its labels.
        """
        device, options = evidence.tokens_cls.device, self.options
        valid = torch.stack([crop.valid for crop in crops]).to(device)  # (B, S, S)
        classes = evidence.classes(device)  # (B, K)
        cams = self.refined(crops, evidence, decoder_affinity)  # (B, K, N)
        scale = options.par_scale if options.par_iterations else 1.0
        size = scaled_size((valid.shape[1], valid.shape[2]), scale)
        maps = resized(cams.reshape(*cams.shape[:2], *evidence.grid), size)  # (B, K, S', S')
        scores = background_first(maps, classes >= 0, self.refine.background_power)  # (B, K + 1, S', S')
        if options.par_iterations:
            images = torch.stack([crop.image for crop in crops]).to(device)  # (B, 3, S, S)
            scores = refinement_at_scale(
                images, scores, scale, options.par_dilations, options.par_iterations
            )  # (B, K + 1, S, S)
        labels = online_label_map(scores, classes, self.refine.min_confidence).masked_fill(~valid, IGNORE_INDEX)
        for label_map, crop in zip(labels, crops, strict=True):
            if crop.target is not None:  # a corrected mask
                label_map.copy_(crop.target)  # (S, S)
        targets = self._with_supers(Targets(labels), crops, evidence)
        if not options.train_heads:
            return targets
        tokens = head_features(evidence.tokens_cls, evidence.tail, evidence.alignment.features)  # (B, N, E)
        samples = Batch(tokens, cams, classes, torch.zeros_like(classes), self.valid_tokens(crops).to(device))
        return replace(targets, samples=samples)

    def _with_supers(self, targets: Targets, crops: Sequence[Crop], evidence: Evidence) -> Targets:
        """Add super-class maps, and the super-class of each class, if a loss needs them."""
        if not needs_super_maps(self.options):
            return targets
        valid = self.valid_tokens(crops).to(evidence.tokens_cls.device)  # (B, N)
        of_class = sent(torch.tensor(evidence.text.super_of_class), valid.device)  # (C,)
        maps = super_maps(evidence.replacing(valid=valid), self.cams)  # (B, S, N)
        return replace(targets, super_maps=maps, super_of_class=of_class)

    @torch.no_grad()
    def refined(self, crops: Sequence[Crop], evidence: Evidence, decoder_affinity: Tensor | None = None) -> Tensor:
        """Compute refined CAMs ``(B, K, N)`` in [0, 1], zero in padding and in empty slots; arguments as in ``__call__``."""
        valid = self.valid_tokens(crops).to(evidence.tokens_cls.device)  # (B, N)
        if not any(evidence.counts):
            return torch.zeros(len(crops), 0, valid.shape[1], device=valid.device)
        if self.options.train_heads:
            evidence.alignment.project_text()  # the heads have changed since the last step
        evidence = evidence.replacing(valid=valid)
        if decoder_affinity is not None and "clip_attention" in attention_needs(self.refine):
            difference = self.options.filter_difference
            filtered = filter_attention(evidence.clip_block_attention, decoder_affinity, difference, valid)  # (B, N, N)
            evidence = evidence.replacing(clip_attention=filtered)
        maps = refined_cams(evidence, initial_cams(evidence, self.cams), self.refine)  # (T, N)
        return evidence.padded(maps)  # (B, K, N)

    @staticmethod
    def valid_tokens(crops: Sequence[Crop]) -> Tensor:
        """Return the tokens of which more than half is image and not padding, ``(B, N)`` bool."""
        valid = torch.stack([crop.valid for crop in crops]).float()  # (B, S, S)
        return F.adaptive_avg_pool2d(valid.unsqueeze(1), crops[0].photo.grid).flatten(1) > 0.5
