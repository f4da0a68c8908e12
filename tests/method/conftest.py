"""The tiny CLIP with text and heads, as the method's functions take it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import torch
    from numpy.typing import NDArray

    from pipelines.datasets.base import Sample
    from pipelines.encoders.class_embeddings import TextEmbeddings
    from pipelines.encoders.clip import ClipEncoder
    from pipelines.method.encoders import Encoders
    from pipelines.method.photo import Photo
    from pipelines.models.alignment_file import Alignment
    from pipelines.options.stages import CamsOptions


@dataclass(frozen=True)
class Extractor:
    """Encoders and options of initial CAMs."""

    encoders: Encoders
    options: CamsOptions

    def load(self, sample: Sample, superpixels: NDArray[np.integer] | None = None) -> Photo:
        from pipelines.datasets.image import load_image

        return self.encoders.photo(sample, load_image(sample.image_path), superpixels, self.options.scales)

    def cams(self, photos: Sequence[Photo]) -> list[torch.Tensor]:
        from pipelines.method.cam_extractor import extract_cams

        maps = extract_cams(self.encoders, photos, self.options)  # (T, h, w)
        return list(maps.split([len(photo.sample.labels) for photo in photos]))


@dataclass(frozen=True)
class Clip:
    """The tiny CLIP and what belongs to it."""

    options: Any
    weights: Any
    encoder: ClipEncoder
    text: TextEmbeddings
    samples: dict[str, Sample]

    def extractor(self, options: CamsOptions, alignment: Alignment | None = None) -> Extractor:
        from pipelines.method.aligned import AlignedText
        from pipelines.method.encoders import Encoders
        from pipelines.method.evidence import TextFeatures
        from pipelines.method.parts_in_use import cam_needs

        text = TextFeatures(self.text.all, len(self.text.classes), self.encoder.logit_scale)
        aligned = None if alignment is None else AlignedText(alignment, text, options)
        in_use = options if alignment is None else options.model_copy(update={"ckpt": self.options.text_bank})  # any path
        return Extractor(Encoders(cam_needs(in_use), self.encoder, text=text, alignment=aligned), options)

    def cam(self, image_id: str, options: CamsOptions, alignment: Alignment | None = None) -> torch.Tensor:
        extractor = self.extractor(options, alignment)
        return extractor.cams([extractor.load(self.samples[image_id])])[0]


@pytest.fixture(scope="session")
def clip(tiny_voc) -> Clip:
    import torch

    from pipelines.config import build_options, read_config
    from pipelines.datasets import load_dataset
    from pipelines.datasets.classes import VOC12
    from pipelines.encoders.class_embeddings import text_embeddings
    from pipelines.encoders.clip import ClipEncoder
    from pipelines.encoders.weights import build_clip, resolve_clip

    values, _ = read_config(tiny_voc.config)
    options = build_options("clip", values["clip"])
    weights = resolve_clip(options.model, options.pretrained)
    loaded = build_clip(weights)
    samples = {s.image_id: s for s in load_dataset(build_options("dataset", values["dataset"])).samples}
    return Clip(options, weights, ClipEncoder(loaded, torch.device("cpu")), text_embeddings(loaded, VOC12, options), samples)
