"""Boundary refinement: scores of a label map follow the edges of the photo. A table of ways to do it.

Imported by workers that never load torch: an entry that needs it imports it when it is called.
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

from pipelines.ops.crf import CrfParameters, dense_crf
from pipelines.ops.label_map import resize_maps
from pipelines.options.boundary import BoundaryOptions
from pipelines.plugins import table_entry

Pixels = NDArray[np.uint8]
"""``(H, W, 3)`` RGB."""
Scores = NDArray[np.float32]
"""``(K + 1, H, W)``, background first, non-negative."""
Size = tuple[int, int]
"""``(H, W)``."""

PAR_LONG_SIDE = 1024
"""Pixels: PAR has 8 weights a distance and pixel, 170 MB at five distances, and about three times that while they are made."""

CRF_KEYS = {
    "crf_iterations": "iterations",
    "crf_bilateral_sxy": "bilateral_sxy",
    "crf_bilateral_srgb": "bilateral_srgb",
    "crf_bilateral_compat": "bilateral_compat",
    "crf_gaussian_sxy": "gaussian_sxy",
    "crf_gaussian_compat": "gaussian_compat",
}
"""Option -> parameter of the CRF."""


def _full_size(options: Any, size: Size) -> float:
    return 1.0


@dataclass(frozen=True)
class Boundary:
    """One way to move scores to the edges of a photo.

    Attributes:
        call: Scores, the photo at their size, the options and a torch device such as ``cuda:0`` -> scores of the same
            shape; None keeps the scores and opens no photo.
        options: Names of the options that change its result.
        scale: Options and ``(H, W)`` of the photo -> resolution factor at which ``call`` gets scores and photo.
        processes: Each label map is made in a worker process without torch, for a ``call`` that holds the interpreter lock;
            else in threads of the run's own process.
    """

    call: Callable[[Scores, Pixels, Any, str], Scores] | None
    options: tuple[str, ...] = ()
    scale: Callable[[Any, Size], float] = _full_size
    processes: bool = False


def _crf(scores: Scores, image: Pixels, options: BoundaryOptions, device: str) -> Scores:
    numbers = {name: getattr(options, key) for key, name in CRF_KEYS.items()}
    numbers["bilateral_sxy"] *= options.crf_scale  # it counts pixels of the photo; gaussian_sxy those that are left
    return dense_crf(image, scores, CrfParameters(**numbers))


_ONE_PHOTO = Lock()
"""Torch shares one photo out over all cores, and a GPU holds the weights of one."""


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


BOUNDARY: dict[str, Boundary] = {
    "none": Boundary(None),
    "crf": Boundary(_crf, ("crf_scale", *CRF_KEYS), lambda options, size: float(options.crf_scale), processes=True),
    "par": Boundary(_par, ("par_iterations", "par_dilations", "par_scale"), _par_scale),
}


def crf_installed() -> bool:
    """Whether pydensecrf2 is there; it is not imported."""
    return importlib.util.find_spec("pydensecrf") is not None


def boundary_name(options: BoundaryOptions) -> str:
    """The name in `BOUNDARY` that the options ask for; ``auto`` is ``crf`` where pydensecrf2 is installed, else ``par``."""
    automatic = "crf" if crf_installed() else "par"
    return automatic if options.boundary == "auto" else options.boundary


def boundary_note(options: BoundaryOptions) -> str | None:
    """What ``auto`` came to, in one line; None where the options name a refinement."""
    if options.boundary != "auto":
        return None
    name = boundary_name(options)
    return f"boundary refinement auto is {name}: pydensecrf2 is {'' if name == 'crf' else 'not '}installed"


def boundary_of(options: BoundaryOptions) -> Boundary:
    """The entry of `BOUNDARY` that the options ask for."""
    return table_entry(BOUNDARY, boundary_name(options), "boundary refinement", "--boundary")


def label_map_values(options: BoundaryOptions, *names: str) -> dict[str, Any]:
    """The options that change a label map once its maps are given, as JSON holds them; ``auto`` is what it came to.

    Args:
        options: Of a stage that writes label maps.
        names: Those that count whatever the boundary refinement is.
    """
    boundary = boundary_of(options)
    further = {"boundary_background_power", *boundary.options} if boundary.call is not None else set()
    return options.model_dump(mode="json", include={*names, *further}) | {"boundary": boundary_name(options)}


def refined_scores(
    make: Callable[[Size], Scores], size: Size, options: BoundaryOptions, load: Callable[[], Image.Image], device: str
) -> Scores:
    """Scores after the boundary refinement of the options, which must not be ``none``.

    Args:
        make: Scores at a size: that of the photo times the resolution factor of the refinement.
        size: ``(H, W)`` of the photo.
        options: The refinement and its numbers.
        load: Gives the photo.
        device: Torch device, for a refinement that uses torch.

    Returns:
        ``(K + 1, H, W)`` at the photo's size, resized bilinearly.
    """
    boundary = boundary_of(options)
    if boundary.call is None:
        raise ValueError("there is no boundary refinement to apply")
    scale = boundary.scale(options, size)
    height, width = (max(1, round(side * scale)) for side in size)
    photo = load()
    if (height, width) == size:
        return boundary.call(make(size), np.asarray(photo), options, device)
    small = np.asarray(photo.resize((width, height), Image.Resampling.BILINEAR))  # (h, w, 3)
    return resize_maps(boundary.call(make((height, width)), small, options, device), size)
