"""The scores of a decoder during its training, equal to those of `ssr predict --scales 1 --no-flip` and `ssr eval`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipelines.datasets.base import Dataset, Sample
from pipelines.datasets.image import load_image
from pipelines.encoders.clip import ClipEncoder
from pipelines.errors import ImageError, SsrError, UsageError
from pipelines.evaluation.confusion import confusion_counts
from pipelines.evaluation.ground_truth import read_mask
from pipelines.evaluation.metrics import metrics_from_counts
from pipelines.execution.pool import prefetch
from pipelines.method.label_maps import winners
from pipelines.method.photo import Photo
from pipelines.method.predictor import Predictor
from pipelines.models.segmenter import Segmenter
from pipelines.options.train import PredictOptions

OPTIONS = PredictOptions(scales=(1.0,), flip=False)
HINT = "mend it and run the command again, or leave --val-split out"


class Validation:
    """The images of a split and their ground truth.

    Args:
        dataset: The split.
        encoder: The frozen CLIP.

    Raises:
        UsageError: The dataset has no ground truth.
    """

    def __init__(self, dataset: Dataset, encoder: ClipEncoder) -> None:
        if dataset.mask_folder is None or not dataset.mask_folder.is_dir():
            raise UsageError(f"split {dataset.split} has no ground truth to validate on", "train without --val-split")
        self.dataset, self.encoder = dataset, encoder

    def miou(self, segmenter: Segmenter) -> float:
        """Compute the mean IoU over the classes that occur.

        Raises:
            SsrError: An image or mask cannot be used.
        """
        predictor = Predictor(self.encoder, segmenter, OPTIONS)
        names = self.dataset.classes.label_map_names
        total = np.zeros((len(names), len(names) + 1), dtype=np.int64)

        def load(sample: Sample) -> tuple[Photo, NDArray[np.uint8]]:
            path = self.dataset.mask_path(sample.image_id)
            assert path is not None  # noqa: S101 - mask_folder was checked
            return predictor.photo(sample, load_image(sample.image_path, sample.orient)), read_mask(path, len(names) - 1)

        for sample, loaded in prefetch(load, self.dataset.samples):
            if isinstance(loaded, ImageError):
                raise SsrError(f"validation stopped at {sample.image_id}: {loaded.message}", HINT)
            photo, target = loaded
            found = winners(predictor.logits([photo])[0].half().cpu().numpy(), photo.size)  # (H, W)
            try:
                total += confusion_counts(found, target, len(names))
            except ValueError as error:
                raise SsrError(f"validation stopped at {sample.image_id}: {error}", HINT) from error
        return metrics_from_counts(total, names).miou
