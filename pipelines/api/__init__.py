"""The Python door: pseudo-masks and a segmentation model's label maps from arrays, in a few lines.

    labeler = PseudoLabeler.from_recipe("ssr", classes=["cat", "dog"])
    result = labeler(image, ["cat"])            # an array (H, W, 3), a PIL image or a path

The same functions make the maps of the commands: a notebook and `ssr cams`, `ssr refine` give the same bytes.
"""

from __future__ import annotations

from pipelines.api.labeler import PseudoLabeler
from pipelines.api.model import SegmentationModel
from pipelines.api.results import PseudoLabels, PseudoLabelTensors

__all__ = ["PseudoLabelTensors", "PseudoLabeler", "PseudoLabels", "SegmentationModel"]
