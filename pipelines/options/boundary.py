"""Options that ``[refine]`` and ``[predict]`` share: how label maps are moved to the edges of the photo."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from pipelines.options.sources import Options, option

BilateralSxy = Annotated[
    float, Field(gt=0, description="CRF: standard deviation of the appearance kernel in space, in pixels.")
]
BilateralSrgb = Annotated[
    float, Field(gt=0, description="CRF: standard deviation of the appearance kernel in colour, in grey levels (0 to 255).")
]
GaussianSxy = Annotated[
    float,
    Field(
        gt=0,
        description="CRF: standard deviation of the smoothness kernel, in pixels.",
    ),
]


class BoundaryOptions(Options):
    """Boundary refinement. Defaults of the CRF's kernels are those of CLIP-ES."""

    boundary: Annotated[
        str,
        option(
            "How label maps follow the photo's edges: with the dense CRF (crf; needs pydensecrf2), with "
            "pixel-adaptive refinement (par), with the CRF where pydensecrf2 is installed and else PAR (auto), or"
            " not (none).",
            choices=("none", "crf", "par", "auto"),
        ),
    ] = "none"
    crf_iterations: Annotated[
        int,
        Field(ge=1, description="CRF: iterations of mean field (CLIP-ES: 10)."),
    ] = 5
    crf_scale: Annotated[
        float,
        Field(
            ge=0.1,
            le=1,
            description="CRF: share of the photo's resolution at which it runs; a lower one is faster (CLIP-ES: 1).",
        ),
    ] = 0.5
    crf_bilateral_sxy: BilateralSxy = 67.0
    crf_bilateral_srgb: BilateralSrgb = 3.0
    crf_bilateral_compat: Annotated[float, Field(ge=0, description="CRF: weight of the appearance kernel.")] = 4.0
    crf_gaussian_sxy: GaussianSxy = 1.0
    crf_gaussian_compat: Annotated[float, Field(ge=0, description="CRF: weight of the smoothness kernel.")] = 3.0
    par_iterations: Annotated[int, Field(ge=1, description="PAR: passes over the photo (WeCLIP: 20).")] = 10
    par_dilations: Annotated[
        tuple[Annotated[int, Field(ge=1)], ...],
        Field(min_length=1, description="PAR: distances of the neighbours, in pixels of the photo (WeCLIP: also 24)."),
    ] = (1, 2, 4, 8, 12)
    par_scale: Annotated[
        float,
        Field(
            ge=0.1, le=1, description="PAR: share of the photo's resolution at which it runs, on at most 1024 pixels a side."
        ),
    ] = 0.5
