"""The Python interface: arrays become pseudo-masks, or the label maps of a segmentation model, in a few lines.

    labeler = PseudoLabeler.from_recipe("ssr", classes=["cat", "dog"])
    result = labeler(image, ["cat"])            # an array (H, W, 3), a PIL image or a path

The commands call the same functions, so a notebook and `ssr cams`, `ssr refine` give the same bytes.
"""

from __future__ import annotations

from pipelines.api.labeler import PseudoLabeler
from pipelines.api.model import SegmentationModel
from pipelines.api.results import PseudoLabels, PseudoLabelTensors

__all__ = ["PseudoLabelTensors", "PseudoLabeler", "PseudoLabels", "SegmentationModel"]
