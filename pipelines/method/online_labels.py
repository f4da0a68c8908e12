"""Pseudo-masks made while the decoder trains: CAM, affinity and masks as in `ssr refine`, on crops, in batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from pipelines.method.aligned_cams import head_features
from pipelines.method.cam_extractor import CamExtractor
from pipelines.method.encoder_pair import Encoded
from pipelines.method.photo import Crop
from pipelines.method.refinement import build_affinity, column_mask, uses_clip, uses_dino
from pipelines.ops.affinity import propagate
from pipelines.ops.attention_filter import filter_attention
from pipelines.ops.label_map import IGNORE_INDEX
from pipelines.ops.online_label_map import background_first, online_label_map
from pipelines.ops.par import pixel_adaptive_refinement
from pipelines.ops.scaling import min_max
from pipelines.options.stages import RefineOptions
from pipelines.options.train import TrainOptions
from pipelines.training.alignment_loss import Batch
from pipelines.training.segmentation import Targets


@dataclass(frozen=True)
class OnlineLabels:
    """Makes label maps of batches of crops.

    Attributes:
        maker: The initial CAM, through alignment heads or not.
        refine: Affinity, masks, propagation, background rule, confidence.
        options: Filter and pixel-adaptive refinement.
    """

    maker: CamExtractor
    refine: RefineOptions
    options: TrainOptions

    @torch.no_grad()
    def __call__(self, crops: Sequence[Crop], encoded: Encoded, decoder_affinity: Tensor | None = None) -> Targets:
        """Label maps, and what L_proto learns from if heads are trained.

        Args:
            crops: A batch of B crops of side S.
            encoded: The same behind the encoders.
            decoder_affinity: ``(B, N, N)`` in [0, 1]: filters CLIP's attention (WeCLIP's RFM); None: no filter.

        Returns:
            Labels ``(B, S, S)``: 0 background, ``i + 1`` for class i, 255 where padded or not confident.
        """
        device, options = self.maker.text.device, self.options
        labels = [crop.photo.sample.labels for crop in crops]
        valid = torch.stack([crop.valid for crop in crops]).to(device)  # (B, S, S)
        padded_labels = [torch.tensor(own, dtype=torch.int64, device=device) for own in labels]
        classes = pad_sequence(padded_labels, batch_first=True, padding_value=-1)  # (B, K)
        cams = self.refined(crops, encoded, decoder_affinity)  # (B, K, N)
        grid = crops[0].photo.grid
        side = max(1, round(valid.shape[-1] * options.par_scale)) if options.par_iterations else valid.shape[-1]
        maps = _resized(cams.reshape(*cams.shape[:2], *grid), side)  # (B, K, S', S')
        scores = background_first(maps, classes >= 0, self.refine.background_power)  # (B, K + 1, S', S')
        if options.par_iterations:
            images = torch.stack([crop.image for crop in crops]).to(device)  # (B, 3, S, S)
            scores = pixel_adaptive_refinement(_resized(images, side), scores, options.par_dilations, options.par_iterations)
            scores = _resized(scores, valid.shape[-1])  # (B, K + 1, S, S)
        found = online_label_map(scores, classes, self.refine.min_confidence).masked_fill(~valid, IGNORE_INDEX)
        return Targets(found, self._samples(encoded, cams, classes, self.valid_tokens(crops)) if options.train_heads else None)

    def _samples(self, encoded: Encoded, cams: Tensor, classes: Tensor, valid: Tensor) -> Batch:
        if encoded.clip is None or self.maker.heads is None:
            raise ValueError("L_proto needs CLIP's tokens and alignment heads")
        features = self.maker.heads.alignment.features
        tokens = head_features(encoded.clip.tokens_cls, self.maker.encoder.tail(encoded.clip.grid), features)  # (B, N, E)
        return Batch(tokens, cams, classes, torch.zeros_like(classes), valid)

    @torch.no_grad()
    def refined(self, crops: Sequence[Crop], encoded: Encoded, decoder_affinity: Tensor | None = None) -> Tensor:
        """Refined CAMs ``(B, K, N)`` in [0, 1], zero in padding and in empty slots; arguments as in ``__call__``."""
        if encoded.clip is None:
            raise ValueError("CAMs need CLIP's tokens")
        device, photos = self.maker.text.device, [crop.photo for crop in crops]
        labels = [photo.sample.labels for photo in photos]
        grids = [photo.superpixels for photo in photos]
        valid = self.valid_tokens(crops)  # (B, N)
        counts = [len(own) for own in labels]
        if not any(counts):
            return torch.zeros(len(crops), 0, valid.shape[1], device=device)
        if self.options.train_heads and self.maker.heads is not None:
            self.maker.heads.renew()  # they have changed since the last step
        maps = self.maker.read_out(encoded.clip, labels, [grid.membership if grid else None for grid in grids])  # (T, N)
        initial = list(torch.split(maps, counts))  # B x (K_b, N)
        cams = pad_sequence(initial, batch_first=True) * valid.unsqueeze(1)  # (B, K, N)
        masks: list[Tensor] = []
        for index, cam in enumerate(initial):  # boxes and clusters are found image by image
            superpixels, tokens = grids[index], encoded.dino_tokens_of(index)
            if superpixels is not None and tokens is not None and self.refine.superpixel_mask == "cluster":
                superpixels = superpixels.with_features(tokens)
            mask = column_mask(cam * valid[index], photos[index].grid, superpixels, self.refine)
            masks.append(torch.ones_like(cam) if mask is None else mask)
        affinity = build_affinity(*self._attention(encoded, decoder_affinity, valid), self.refine)  # (B, N, N)
        mask = pad_sequence(masks, batch_first=True)  # (B, K, N)
        spread = propagate(affinity, cams, mask, self.refine.power, self.refine.mask_every_step)  # (B, K, N)
        return _min_max_of_photo(spread, valid.unsqueeze(1))

    def valid_tokens(self, crops: Sequence[Crop]) -> Tensor:
        """Tokens that are photo for the most part, ``(B, N)`` bool."""
        valid = torch.stack([crop.valid for crop in crops]).to(self.maker.text.device, torch.float32)  # (B, S, S)
        return F.adaptive_avg_pool2d(valid.unsqueeze(1), crops[0].photo.grid).flatten(1) > 0.5

    def _attention(
        self, encoded: Encoded, decoder_affinity: Tensor | None, valid: Tensor
    ) -> tuple[Tensor | None, Tensor | None]:
        clip = encoded.clip.attention if encoded.clip is not None and uses_clip(self.refine) else None
        if decoder_affinity is not None and clip is not None:
            if encoded.clip is None or encoded.clip.block_attention is None:
                raise ValueError("the filter needs each block's attention")
            clip = filter_attention(encoded.clip.block_attention, decoder_affinity, self.options.filter_difference, valid)
        dino = encoded.dino.attention if encoded.dino is not None and uses_dino(self.refine) else None
        return clip, dino


def _min_max_of_photo(maps: Tensor, valid: Tensor) -> Tensor:
    """`min_max` over the tokens that are photo, ``(B, K, N)``; the others are zero.

    Zeros of the padding must not be the minimum: the affinity spreads some of every class everywhere.
    """
    lowest = maps.masked_fill(~valid, float("inf")).amin(dim=-1, keepdim=True)  # (B, K, 1)
    return min_max(torch.where(valid, maps, lowest)).masked_fill(~valid, 0)


def _resized(maps: Tensor, side: int) -> Tensor:
    """``(B, C, h, w)`` -> ``(B, C, side, side)``, bilinear."""
    if maps.shape[1] == 0:  # photos without classes: torch refuses
        return maps.new_zeros(len(maps), 0, side, side)
    return F.interpolate(maps, size=(side, side), mode="bilinear", align_corners=False)
