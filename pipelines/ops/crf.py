"""Fully connected CRF over the classes of an image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import SsrError


@dataclass(frozen=True)
class CrfParameters:
    """Parameters of the dense CRF (Krähenbühl & Koltun, NeurIPS 2011); defaults are those of DeepLab and CLIP-ES.

    Attributes:
        iterations: Number of mean-field steps.
        gaussian_sxy: Spatial standard deviation of the smoothness kernel, pixels.
        gaussian_compat: Weight of the smoothness kernel.
        bilateral_sxy: Spatial standard deviation of the appearance kernel, pixels.
        bilateral_srgb: Colour standard deviation of the appearance kernel, grey levels.
        bilateral_compat: Weight of the appearance kernel.
    """

    iterations: int = 10
    gaussian_sxy: float = 1.0
    gaussian_compat: float = 3.0
    bilateral_sxy: float = 67.0
    bilateral_srgb: float = 3.0
    bilateral_compat: float = 4.0


def dense_crf(image: NDArray[np.uint8], scores: NDArray[np.float32], parameters: CrfParameters) -> NDArray[np.float32]:
    """Refine scores along the image's edges.

    Args:
        image: ``(H, W, 3)`` RGB. CLIP-ES passes mean-subtracted values that wrap around; a measurement showed no difference.
        scores: ``(C, H, W)`` in [0, 1], clipped at 1e-5; -log of them is the unary. They need not sum to 1.
        parameters: Kernel widths and weights.

    Returns:
        ``(C, H, W)`` posterior, sums to 1 over C.

    Raises:
        SsrError: pydensecrf2 is not installed.
    """
    if len(scores) == 1:
        return np.ones_like(scores)
    try:
        from pydensecrf.densecrf import DenseCRF2D
    except ImportError as error:
        raise SsrError(
            "the CRF needs pydensecrf2", "pip install 'ssr-wsss[crf]', or --boundary par, which does without it"
        ) from error
    classes, height, width = scores.shape
    field = DenseCRF2D(width, height, classes)
    unary = -np.log(np.clip(scores, 1e-5, 1)).reshape(classes, -1)  # (C, H * W)
    field.setUnaryEnergy(np.ascontiguousarray(unary, dtype=np.float32))
    field.addPairwiseGaussian(sxy=parameters.gaussian_sxy, compat=parameters.gaussian_compat)
    field.addPairwiseBilateral(
        sxy=parameters.bilateral_sxy,
        srgb=parameters.bilateral_srgb,
        rgbim=np.array(image, order="C"),
        compat=parameters.bilateral_compat,
    )
    posterior = np.asarray(field.inference(parameters.iterations), dtype=np.float32)
    return cast("NDArray[np.float32]", posterior.reshape(classes, height, width))
