"""The refinement against loops over pixels and neighbours, in double precision."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.ops.par import neighbour_weights, pixel_adaptive_refinement, refine, refinement_at_scale, scaled_dilations


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def spread(values: list[float]) -> float:
    mean = sum(values) / len(values)
    return math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))


def softmax(values: list[float]) -> list[float]:
    odds = [math.exp(v - max(values)) for v in values]
    return [o / sum(odds) for o in odds]


def neighbours_of(y: int, x: int, height: int, width: int, dilations: tuple[int, ...]) -> list[tuple[int, int, float]]:
    found = []
    for d in dilations:
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                if (dy, dx) != (0, 0):
                    there = min(max(y + d * dy, 0), height - 1), min(max(x + d * dx, 0), width - 1)
                    found.append((*there, d * math.sqrt(2) if dy and dx else float(d)))
    return found


def naive_weights(image: Tensor, y: int, x: int, dilations: tuple[int, ...]) -> list[float]:
    channels, height, width = image.shape
    found = neighbours_of(y, x, height, width, dilations)
    colour = [0.0] * len(found)
    for c in range(channels):
        sigma = spread([image[c, v, u].item() for v, u, _ in found])
        for j, (v, u, _) in enumerate(found):
            away = abs(image[c, y, x].item() - image[c, v, u].item())
            colour[j] -= (away / (sigma + 1e-8) / 0.3) ** 2 / channels
    sigma = spread([distance for *_, distance in found])
    place = [-((distance / (sigma + 1e-8) / 0.3) ** 2) for *_, distance in found]
    return [a + 0.01 * b for a, b in zip(softmax(colour), softmax(place), strict=True)]


def naive_pass(image: Tensor, maps: Tensor, dilations: tuple[int, ...]) -> Tensor:
    out = torch.zeros_like(maps)
    _, height, width = maps.shape
    for y in range(height):
        for x in range(width):
            weights = naive_weights(image, y, x, dilations)
            for weight, (v, u, _) in zip(weights, neighbours_of(y, x, height, width, dilations), strict=True):
                out[:, y, x] += weight * maps[:, v, u]
    return out


@pytest.mark.parametrize(
    ("size", "dilations"),
    [((4, 7), (1,)), ((5, 3), (1, 2)), ((3, 6), (2, 4, 12)), ((3, 4), (1, 2, 4, 8, 12, 24)), ((1, 5), (1, 3))],
)
def test_same_as_loops(size: tuple[int, int], dilations: tuple[int, ...]) -> None:
    images, maps = draw(2, 3, *size), draw(2, 4, *size, seed=1)
    expected = []
    for image, mine in zip(images, maps, strict=True):
        for _ in range(3):
            mine = naive_pass(image, mine, dilations)
        expected.append(mine)
    actual = pixel_adaptive_refinement(images, maps, dilations, iterations=3)
    torch.testing.assert_close(actual, torch.stack(expected))
    weights = neighbour_weights(images, dilations)
    torch.testing.assert_close(refine(maps, weights, dilations, 3), actual)
    assert weights.shape == (2, 8 * len(dilations), *size)
    there = torch.tensor(naive_weights(images[1], size[0] - 1, 1, dilations), dtype=torch.float64)
    torch.testing.assert_close(weights[1, :, -1, 1], there)


def test_scaling_of_the_channels_does_not_matter() -> None:
    image, maps = draw(1, 3, 9, 6).float(), draw(1, 2, 9, 6, seed=1).float()
    scale, shift = torch.tensor([255.0, -4.4, 0.01]), torch.tensor([0.0, 2.1, -0.3])
    other = image * scale[:, None, None] + shift[:, None, None]
    expected = pixel_adaptive_refinement(image, maps)
    torch.testing.assert_close(pixel_adaptive_refinement(other, maps), expected, rtol=1e-3, atol=1e-4)
    assert (expected - maps).abs().max() > 0.1


@pytest.mark.parametrize("contrast", [0.0, 1.0])
def test_a_constant_map_grows_by_one_percent_a_pass(contrast: float) -> None:
    image = contrast * draw(1, 3, 6, 8).float()
    grown = pixel_adaptive_refinement(image, torch.full((1, 1, 6, 8), 0.5), iterations=20)
    torch.testing.assert_close(grown, torch.full((1, 1, 6, 8), 0.5 * 1.01**20))


def test_maps_take_the_shape_of_what_is_seen() -> None:
    image = torch.zeros(1, 3, 12, 16, dtype=torch.uint8)
    image[..., 8:] = 200  # an edge in the photo, at column 8
    maps = torch.zeros(1, 2, 12, 16)
    maps[:, 0, :, :10], maps[:, 1, :, 10:] = 1, 1  # the maps say column 10
    refined = pixel_adaptive_refinement(image, maps)
    assert refined.dtype == torch.float32
    assert torch.equal(refined.argmax(dim=1)[0], (torch.arange(16) >= 8).long().expand(12, 16))


@pytest.mark.parametrize("value", [0.1, 255.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_lone_pixel_and_flat_photos_stay_finite(value: float, dtype: torch.dtype) -> None:
    image = torch.zeros(1, 3, 7, 7, dtype=dtype)
    image[..., 3, 3] = value
    weights = neighbour_weights(image)
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights.sum(dim=1), torch.full((1, 7, 7), 1.01))


def test_no_pass_and_arguments_left_alone() -> None:
    image, maps = draw(1, 3, 4, 5), draw(1, 2, 4, 5, seed=1)
    before = maps.clone(), image.clone()
    assert torch.equal(pixel_adaptive_refinement(image, maps, iterations=0), maps)
    pixel_adaptive_refinement(image, maps, iterations=2)
    assert torch.equal(maps, before[0])
    assert torch.equal(image, before[1])


@pytest.mark.parametrize(
    ("dilations", "scale", "expected"),
    [
        ((1, 2, 4, 8, 12, 24), 1.0, (1, 2, 4, 8, 12, 24)),
        ((1, 2, 4, 8, 12, 24), 0.5, (1, 1, 2, 4, 6, 12)),
        ((1, 2, 4, 8, 12, 24), 0.25, (1, 1, 1, 2, 3, 6)),
        ((3,), 0.01, (1,)),
    ],
)
def test_distances_shrink_with_the_photo(dilations, scale, expected):
    assert scaled_dilations(dilations, scale) == expected


@pytest.mark.parametrize(
    ("scale", "size", "dilations"), [(1.0, (12, 17), (1, 4)), (0.5, (6, 8), (1, 2)), (0.01, (1, 1), (1, 1))]
)
@pytest.mark.parametrize("grid", [(12, 17), (3, 4)])
def test_at_a_scale_it_is_that_of_smaller_photos(scale, size, dilations, grid):
    images, maps = (255 * draw(2, 3, 12, 17)).to(torch.uint8), draw(2, 2, *grid, seed=1)
    small = [F.interpolate(one.double(), size, mode="bilinear") for one in (images, maps)]
    expected = pixel_adaptive_refinement(small[0].float(), small[1], dilations, 3)
    actual = refinement_at_scale(images, maps, scale, (1, 4), 3)
    torch.testing.assert_close(actual, F.interpolate(expected, (12, 17), mode="bilinear"))
    assert refinement_at_scale(images, maps[:, :0], scale).shape == (2, 0, 12, 17)
    assert torch.equal(refinement_at_scale(images, maps, scale, iterations=0), F.interpolate(maps, (12, 17), mode="bilinear"))


def test_what_does_not_fit_is_refused() -> None:
    weights = neighbour_weights(draw(1, 3, 4, 5), (1, 2))
    with pytest.raises(ValueError, match=r"sizes differ: maps \(5, 4\), images \(4, 5\)"):
        refine(draw(1, 2, 5, 4), weights, (1, 2))
    with pytest.raises(ValueError, match="zip"):
        refine(draw(1, 2, 4, 5), weights, (1,))
