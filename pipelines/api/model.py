"""`SegmentationModel`, which makes the label map of an image with a trained model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipelines.api.inputs import ImageLike, as_picture, clip_of, precision_of
from pipelines.config import build_options
from pipelines.datasets.base import Sample
from pipelines.encoders.clip import ClipEncoder
from pipelines.encoders.weights import build_clip
from pipelines.errors import UsageError
from pipelines.execution.devices import resolve_device, resolve_dtype
from pipelines.method.boundary import boundary_of
from pipelines.method.label_maps import predicted_mask
from pipelines.method.photo import Photo
from pipelines.method.predictor import MakesLogits, Predictor
from pipelines.models.segmenter import read_segmenter
from pipelines.ops.label_map import resize_maps
from pipelines.options.train import PredictOptions
from pipelines.workdir.memory import recall

_OF_THE_COMMAND = {"model", "images", "output", "probabilities"}
"""Options of ``[predict]`` that say what the command reads and writes."""


class SegmentationModel:
    """A trained segmentation model that makes a label map of any image.

    Args:
        predictor: Makes logits of images.
        classes: Names of the foreground classes.
        options: Scales, flip, boundary refinement.
        device: Torch device of a boundary refinement that uses torch.
    """

    def __init__(self, predictor: MakesLogits, classes: tuple[str, ...], options: PredictOptions, device: str = "cpu") -> None:
        self.predictor, self.classes, self.options, self.device = predictor, classes, options, device

    @classmethod
    def load(
        cls,
        path: Path | str,
        *,
        clip: Mapping[str, Any] | None = None,
        device: str = "auto",
        precision: str | None = None,
        **options: Any,
    ) -> SegmentationModel:
        """Load a model that `ssr train` wrote.

        Args:
            path: ``model.safetensors`` of a work directory.
            clip: Keys of ``[clip]``; default: those that the work directory of the file stores.
            device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
            precision: ``auto``, ``fp32`` or ``bf16``; default: that of the config file that the work directory stores, else
                ``auto``.
            **options: Options of ``[predict]``, such as ``scales``, ``flip`` and ``boundary``.

        Raises:
            UsageError: The file is no such model, or the model was trained with another CLIP.

        Examples:
            >>> model = SegmentationModel.load("runs/sample/model.safetensors")
            >>> model("runs/sample/dataset/JPEGImages/val_0000.jpg").shape
            (202, 256)
        """
        path = Path(path)
        if path.suffix == ".onnx":
            raise UsageError(f"expected the model.safetensors of `ssr train`, found {path}", "onnxruntime runs an .onnx file")
        for name in options.keys() & _OF_THE_COMMAND:
            raise UsageError(f"{name!r} is an option of the command `ssr predict` alone", "leave it out")
        memory = recall(path.parent)
        _, weights = clip_of(memory.get("clip", {}) if clip is None else clip)
        segmenter = read_segmenter(path, weights, "SegmentationModel.load")
        predict = cast("PredictOptions", build_options("predict", options))
        boundary_of(predict)  # refuses an unknown one before the first image
        where = resolve_device(device)
        dtype = resolve_dtype(precision_of(precision, memory.get("config") or {}), where)
        encoder = ClipEncoder(build_clip(weights), where, dtype)
        return cls(Predictor(encoder, segmenter, predict), segmenter.classes, predict, str(where))

    def __call__(self, image: ImageLike) -> NDArray[np.uint8]:
        """Return the label map ``(H, W)`` uint8 of an image: 0 background, ``i + 1`` for class i of `classes`."""
        picture, photo = self._photo(image)
        logits = self.predictor.logits([photo])[0].half().cpu().numpy()  # (C + 1, h, w)
        return predicted_mask(logits, photo.size, self.options, lambda: picture, self.device)

    def probabilities(self, image: ImageLike) -> NDArray[np.float32]:
        """Return the class probabilities ``(C + 1, H, W)`` of an image, background first."""
        _, photo = self._photo(image)
        shares = self.predictor.logits([photo])[0].softmax(0).cpu().numpy()  # (C + 1, h, w)
        return resize_maps(shares, photo.size)

    def _photo(self, image: ImageLike) -> tuple[Image.Image, Photo]:
        picture = as_picture(image)
        return picture, self.predictor.photo(Sample("", Path(), ()), picture)
