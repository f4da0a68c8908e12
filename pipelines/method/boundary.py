"""Boundary refinements, which move the scores of a label map to the edges of the image, and their table.

Worker processes without torch import this module, so an entry that needs torch imports it when it is called.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipelines.errors import SsrError
from pipelines.ops.crf import CrfParameters, dense_crf
from pipelines.ops.label_map import resize_maps
from pipelines.options.boundary import BoundaryOptions
from pipelines.plugins import Table, called, table_entry

Pixels = NDArray[np.uint8]
"""``(H, W, 3)`` RGB."""
Scores = NDArray[np.float32]
"""``(K + 1, H, W)``, background first, non-negative."""
Size = tuple[int, int]
"""``(H, W)``."""

PAR_LONG_SIDE = 1024
"""Pixels. PAR has 8 weights per distance and pixel: 170 MB at five distances, and about three times that in between."""

CRF_KEYS = {
    "crf_iterations": "iterations",
    "crf_bilateral_sxy": "bilateral_sxy",
    "crf_bilateral_srgb": "bilateral_srgb",
    "crf_bilateral_compat": "bilateral_compat",
    "crf_gaussian_sxy": "gaussian_sxy",
    "crf_gaussian_compat": "gaussian_compat",
}
"""Maps each option to its parameter of the CRF."""


def _full_size(options: Any, size: Size) -> float:
    return 1.0


@dataclass(frozen=True)
class Boundary:
    """One way to move scores to the edges of an image.

    Attributes:
        call: Maps scores, the image at their size, the options and a torch device such as ``cuda:0`` to scores of the same
            shape; None keeps the scores and opens no image.
        options: Names of the options that change its result.
        scale: Maps options and ``(H, W)`` of the image to the resolution factor at which ``call`` gets scores and image.
        processes: Whether each label map is made in a worker process without torch, for a ``call`` that holds the interpreter
            lock; otherwise it is made in a thread of the run's own process.
    """

    call: Callable[[Scores, Pixels, Any, str], Scores] | None
    options: tuple[str, ...] = ()
    scale: Callable[[Any, Size], float] = _full_size
    processes: bool = False


def _crf(scores: Scores, image: Pixels, options: BoundaryOptions, device: str) -> Scores:
    numbers = {name: getattr(options, key) for key, name in CRF_KEYS.items()}
    numbers["bilateral_sxy"] *= options.crf_scale  # it counts image pixels; gaussian_sxy counts reduced pixels
    return dense_crf(image, scores, CrfParameters(**numbers))


_ONE_PHOTO = Lock()
"""Only one image is refined at a time: torch uses all cores for it, and a GPU holds the weights of one image."""


def _par(scores: Scores, image: Pixels, options: BoundaryOptions, device: str) -> Scores:
    import torch

    from pipelines.ops.par import pixel_adaptive_refinement, scaled_dilations

    steps = scaled_dilations(options.par_dilations, options.par_scale)
    with _ONE_PHOTO, torch.inference_mode():
        photo = torch.from_numpy(image.copy()).to(device).permute(2, 0, 1)[None]  # (1, 3, H, W)
        maps = torch.from_numpy(scores).to(device)[None]  # (1, K + 1, H, W)
        refined: Scores = pixel_adaptive_refinement(photo, maps, steps, options.par_iterations)[0].cpu().numpy()
    return refined


def _par_scale(options: BoundaryOptions, size: Size) -> float:
    return min(options.par_scale, PAR_LONG_SIDE / max(size))


BOUNDARY: Table[Boundary] = Table(
    "boundary refinement",
    Boundary,
    {
        "none": Boundary(None),
        "crf": Boundary(_crf, ("crf_scale", *CRF_KEYS), lambda options, size: float(options.crf_scale), processes=True),
        "par": Boundary(_par, ("par_iterations", "par_dilations", "par_scale"), _par_scale),
    },
)


def crf_installed() -> bool:
    """Return whether pydensecrf2 is installed, without importing it."""
    return importlib.util.find_spec("pydensecrf") is not None


def boundary_name(options: BoundaryOptions) -> str:
    """Return the option's name in `BOUNDARY`; ``auto`` becomes ``crf`` where pydensecrf2 is installed, otherwise ``par``."""
    automatic = "crf" if crf_installed() else "par"
    return automatic if options.boundary == "auto" else options.boundary


def boundary_note(options: BoundaryOptions) -> str | None:
    """Return one line that says what ``auto`` was resolved to; None where the options name a refinement."""
    if options.boundary != "auto":
        return None
    name = boundary_name(options)
    return f"boundary refinement auto is {name}: pydensecrf2 is {'' if name == 'crf' else 'not '}installed"


def boundary_of(options: BoundaryOptions) -> Boundary:
    """Return the entry of `BOUNDARY` that the options name."""
    return table_entry(BOUNDARY, boundary_name(options), "--boundary")


def label_map_values(options: BoundaryOptions, *names: str) -> dict[str, Any]:
    """Return the options that change a label map made from given maps, as JSON holds them; ``auto`` is replaced by its choice.

    Args:
        options: Options of a stage that writes label maps.
        names: Options that count for every boundary refinement.
    """
    boundary = boundary_of(options)
    further = {"boundary_background_power", *boundary.options} if boundary.call is not None else set()
    return options.model_dump(mode="json", include={*names, *further}) | {"boundary": boundary_name(options)}


def refined_scores(
    make: Callable[[Size], Scores], size: Size, options: BoundaryOptions, load: Callable[[], Image.Image], device: str
) -> Scores:
    """Return the scores after the boundary refinement of the options, which must not be ``none``.

    Args:
        make: Returns the scores at a size, which is that of the image times the resolution factor of the refinement.
        size: ``(H, W)`` of the image.
        options: The refinement and its numbers.
        load: Returns the image.
        device: Torch device, for a refinement that uses torch.

    Returns:
        ``(K + 1, H, W)`` at the image's size, resized bilinearly.

    Raises:
        SsrError: A plugin's refinement fails, or a refinement returns another shape, NaN or infinity.
    """
    boundary = boundary_of(options)
    if boundary.call is None:
        raise ValueError("there is no boundary refinement to apply")
    scale = boundary.scale(options, size)
    height, width = (max(1, round(side * scale)) for side in size)
    photo = load()
    whole = (height, width) == size
    small = np.asarray(photo if whole else photo.resize((width, height), Image.Resampling.BILINEAR))  # (h, w, 3)
    scores = make((height, width))  # (K + 1, h, w)
    title = f"{BOUNDARY.what} {boundary_name(options)!r}"
    refined = called(title, boundary.call, scores, small, options, device)  # (K + 1, h, w)
    if np.shape(refined) != scores.shape or not np.isfinite(refined).all():
        seen = "NaN or infinity" if np.shape(refined) == scores.shape else f"shape {np.shape(refined)}"
        raise SsrError(f"{title} returned {seen}, expected finite scores {scores.shape}")
    return refined if whole else resize_maps(refined, size)
