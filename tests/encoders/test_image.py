from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.encoders.image import encoder_input, token_grid


@pytest.mark.parametrize(
    ("height", "width", "scale", "expected"),
    [(32, 48, 1.0, (2, 3)), (33, 47, 1.0, (3, 3)), (1, 1, 1.0, (1, 1)), (5, 500, 0.5, (1, 16)), (32, 32, 2.0, (4, 4))],
)
def test_grid_rounds_up_to_whole_patches(height: int, width: int, scale: float, expected: tuple[int, int]) -> None:
    assert token_grid(height, width, 16, scale) == expected


def test_input_is_rgb_rows_first_and_normalised() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 24, 3)).astype(np.uint8)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    tensor = encoder_input(Image.fromarray(pixels), (2, 3), 8, mean, std)
    assert tensor.dtype == torch.float32
    assert tensor.shape == (3, 16, 24)
    expected = ((pixels / 255 - mean) / std).transpose(2, 0, 1)
    np.testing.assert_allclose(tensor, expected, rtol=1e-5, atol=1e-6)


def test_other_sizes_are_resized_bicubic() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (13, 21, 3)).astype(np.uint8))
    tensor = encoder_input(image, (2, 3), 8, (0, 0, 0), (1, 1, 1))
    expected = np.asarray(image.resize((24, 16), Image.Resampling.BICUBIC)).transpose(2, 0, 1) / 255
    np.testing.assert_allclose(tensor, expected, rtol=1e-5, atol=1e-6)
