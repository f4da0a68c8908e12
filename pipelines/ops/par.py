"""Pixel-adaptive refinement, which fits maps to the image's colours (PAR of AFA, Ru et al., CVPR 2022).

```text
#     #     #        Each pixel takes the weighted mean of eight neighbours at every dilation (here 1 and 3),
   # # #             again and again; neighbours of its own colour weigh most.
#  # o #  #
   # # #
#     #     #
```
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

DILATIONS = (1, 2, 4, 8, 12, 24)
"""Distances of the neighbours, in pixels."""

ITERATIONS = 20
"""Number of passes in WeCLIP and ExCEL; AFA makes 10 on VOC."""

RING = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))
"""Offsets of the eight neighbours, (dy, dx)."""

BANDWIDTH = 0.3
POSITION_WEIGHT = 0.01
EPSILON = 1e-8


def pixel_adaptive_refinement(
    images: Tensor, maps: Tensor, dilations: Sequence[int] = DILATIONS, iterations: int = ITERATIONS
) -> Tensor:
    """Refine maps along the images' colours.

    Args:
        images: ``(B, 3, H, W)``; the scaling of a channel (bytes, [0, 1], normalised) does not change the result.
        maps: ``(B, C, H, W)``, for example background and CAMs.
        dilations: Distances of the neighbours in pixels; they may exceed the image, whose border is repeated.
        iterations: Number of passes.

    Returns:
        ``(B, C, H, W)``. As in the authors' code the weights sum to 1.01, so all maps grow by 1% in each pass; this does not
        change the argmax.

    Raises:
        ValueError: ``images`` and ``maps`` differ in size.
    """
    return refine(maps, neighbour_weights(images, dilations), dilations, iterations)


def refinement_at_scale(
    images: Tensor,
    maps: Tensor,
    scale: float = 1.0,
    dilations: Sequence[int] = DILATIONS,
    iterations: int = ITERATIONS,
) -> Tensor:
    """Run `pixel_adaptive_refinement` at a share of the images' resolution, where a pass costs the square of that share.

    Args:
        images: ``(B, 3, H, W)``, any scaling of each channel.
        maps: ``(B, C, h, w)`` of any resolution; they are resized too.
        scale: Factor of both sides of the images, up to 1.
        dilations: Distances of the neighbours in pixels of the images; see `scaled_dilations`.
        iterations: Number of passes; 0 only resizes the maps.

    Returns:
        ``(B, C, H, W)``, resized back bilinearly.
    """
    size = (images.shape[-2], images.shape[-1])
    if iterations and maps.shape[1]:
        inside = scaled_size(size, scale)
        steps = scaled_dilations(dilations, scale)
        maps = pixel_adaptive_refinement(resized(images, inside), resized(maps, inside), steps, iterations)
    return resized(maps, size)


def scaled_size(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """Return the height and width at which a refinement at a scale runs; at least one pixel."""
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def scaled_dilations(dilations: Sequence[int], scale: float) -> tuple[int, ...]:
    """Return the same distances in pixels of scaled images; neighbours that coincide count as often as before."""
    return tuple(max(1, round(step * scale)) for step in dilations)


def neighbour_weights(images: Tensor, dilations: Sequence[int] = DILATIONS) -> Tensor:
    """Compute the share of each neighbour in a pixel, from likeness in colour and, to a small part, nearness.

    ``softmax_j -mean_c (|I_i - I_j| / sigma_c(i) / 0.3)^2 + 0.01 softmax_j -(distance_j / sigma / 0.3)^2``, where sigma is
    the unbiased standard deviation over the J neighbours (the pixel itself is not among them).

    Args:
        images: ``(B, 3, H, W)``, any scaling of each channel.
        dilations: Distances of the neighbours in pixels.

    Returns:
        ``(B, J, H, W)``, fp32 (fp64 for fp64 images), J = 8 neighbours in row-major order for each dilation in turn;
        sums to 1.01 over J.
    """
    images = images.to(torch.promote_types(images.dtype, torch.float32))
    distance = images.new_tensor([step * math.hypot(*offset) for step in dilations for offset in RING])  # (J,)
    count = len(distance)
    # Differences to the centre replace values, so that their spread is exact where the image is flat. Two passes avoid
    # cancellation.
    mean = torch.zeros_like(images)
    for neighbour in _neighbours(images, dilations):
        mean += (neighbour - images) / count
    variance = torch.zeros_like(images)
    for neighbour in _neighbours(images, dilations):
        variance += (neighbour - images - mean).square() / (count - 1)
    scale = ((variance.sqrt() + EPSILON) * BANDWIDTH).square().reciprocal() / images.shape[1]  # (B, 3, H, W)
    colour = images.new_empty(len(images), count, *images.shape[-2:])  # (B, J, H, W)
    for index, neighbour in enumerate(_neighbours(images, dilations)):
        colour[:, index] = -((neighbour - images).square() * scale).sum(dim=1)
    position = -(distance / (distance.std() + EPSILON) / BANDWIDTH).square()
    return colour.softmax(dim=1) + POSITION_WEIGHT * position.softmax(dim=0)[:, None, None]


def refine(maps: Tensor, weights: Tensor, dilations: Sequence[int] = DILATIONS, iterations: int = ITERATIONS) -> Tensor:
    """Replace each pixel by the weighted sum of its neighbours, ``iterations`` times.

    Args:
        maps: ``(B, C, H, W)``.
        weights: ``(B, J, H, W)``, the result of `neighbour_weights`.
        dilations: The distances that the weights were made for.
        iterations: Number of passes.

    Returns:
        ``(B, C, H, W)`` in the dtype of the weights. No ``(B, C, J, H, W)`` is allocated.

    Raises:
        ValueError: The weights belong to another image size or to other dilations.
    """
    if maps.shape[-2:] != weights.shape[-2:]:
        raise ValueError(f"sizes differ: maps {tuple(maps.shape[-2:])}, images {tuple(weights.shape[-2:])}")
    maps = maps.to(weights.dtype)
    for _ in range(iterations):
        refined = torch.zeros_like(maps)
        for neighbour, weight in zip(_neighbours(maps, dilations), weights.unsqueeze(2).unbind(dim=1), strict=True):
            refined.addcmul_(neighbour, weight)
        maps = refined
    return maps


def _neighbours(maps: Tensor, dilations: Sequence[int]) -> Iterator[Tensor]:
    """Yield the values of each neighbour, ``(B, C, H, W)`` views of one copy with a repeated border."""
    reach = max(dilations)
    height, width = maps.shape[-2:]
    padded = F.pad(maps, (reach, reach, reach, reach), mode="replicate")
    for step in dilations:
        for dy, dx in RING:
            top, left = reach + step * dy, reach + step * dx
            yield padded[..., top : top + height, left : left + width]


def resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize ``(B, C, h, w)`` to ``(B, C, H, W)`` bilinearly; maps of that size are returned unchanged."""
    if maps.shape[1] == 0:  # images without classes, which torch refuses
        return maps.new_zeros(len(maps), 0, *size)
    if maps.shape[-2:] == size:
        return maps
    maps = maps.to(torch.promote_types(maps.dtype, torch.float32))
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
