"""The models that ship with the package: they are what the card says, and they know what they were trained for."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.encoders.clip import ClipEncoder
from pipelines.encoders.dino import DinoEncoder
from pipelines.encoders.image import encoder_input
from pipelines.encoders.text import encode_prompts
from pipelines.encoders.weights import build_clip, resolve_clip, resolve_dino
from pipelines.ops.gradcam import cosine_logits
from pipelines.sample.picture import CLASSES, Picture, draw_picture
from pipelines.stages.sample import models_folder
from pipelines.stores.files import file_sha256

MODELS = models_folder()
CARD = (MODELS / "MODEL_CARD.md").read_text(encoding="utf-8")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pictures() -> list[Picture]:
    """Pictures that neither the set nor the training has."""
    return [draw_picture(np.random.default_rng([123_456, index]), 192, 256) for index in range(16)]


@pytest.fixture(scope="module")
def clip() -> ClipEncoder:
    return ClipEncoder(build_clip(resolve_clip(str(MODELS / "clip.json"), str(MODELS / "clip.safetensors"))), CPU)


@pytest.fixture(scope="module")
def dino() -> DinoEncoder:
    return DinoEncoder(resolve_dino(str(MODELS / "dino.json"), str(MODELS / "dino.safetensors")), CPU)


@pytest.mark.parametrize("name", ["clip", "dino"])
def test_the_card_names_the_file_by_its_checksum(name: str) -> None:
    listed = dict(re.findall(r"`(\w+)\.safetensors`.*?`([0-9a-f]{64})`", CARD))
    assert listed[name] == file_sha256(MODELS / f"{name}.safetensors")


def test_together_they_are_small() -> None:
    assert sum((MODELS / f"{name}.safetensors").stat().st_size for name in ("clip", "dino")) < 12_000_000


def test_clip_tells_which_classes_are_in_a_picture(clip: ClipEncoder, pictures: list[Picture]) -> None:
    loaded = build_clip(resolve_clip(str(MODELS / "clip.json"), str(MODELS / "clip.safetensors")))
    text = encode_prompts(loaded, CLASSES, CLASSES, "{}").embeddings
    scores, truth = [], np.zeros((len(pictures), len(CLASSES)), bool)
    for row, picture in enumerate(pictures):
        truth[row, list(picture.labels)] = True
        encoded = clip.encode(
            encoder_input(Image.fromarray(picture.image), (24, 32), clip.patch_size, clip.mean, clip.std)[None]
        )
        tail = clip.tail(encoded.grid)
        features = tail.features(encoded.tokens_cls, tail.normalise(encoded.tokens_cls)).mean(1)
        scores.append(cosine_logits(text, clip.logit_scale)(features)[0].detach().numpy())
    present = np.asarray(scores)[truth]
    absent = np.asarray(scores)[~truth]
    order = (present[:, None] > absent[None]).mean()  # area under the ROC curve
    assert order > 0.85, order


def attended_share(attention: torch.Tensor, mask: np.ndarray) -> tuple[float, float]:
    """Share of an object's attention that stays on it, and the object's share of the picture."""
    tokens = torch.from_numpy(np.array(Image.fromarray(mask.astype(np.uint8) * 255).resize((32, 24), Image.Resampling.BOX)))
    inside = tokens.flatten() > 127
    if not inside.any():
        return 0.0, 0.0
    return float(attention[inside][:, inside].sum() / inside.sum()), float(inside.float().mean())


@pytest.mark.parametrize("name", ["clip", "dino"])
def test_objects_attend_to_themselves(name: str, clip: ClipEncoder, dino: DinoEncoder, pictures: list[Picture]) -> None:
    stays, area = 0.0, 0.0
    for picture in pictures:
        encoder = clip if name == "clip" else dino
        grid = (24, 32)
        image = encoder_input(Image.fromarray(picture.image), grid, encoder.patch_size, encoder.mean, encoder.std)[None]
        attention = encoder.encode(image, [len(encoder.blocks) - 1]).attention
        assert attention is not None
        for label in picture.labels:
            found, share = attended_share(attention[0], picture.mask == label + 1)
            stays, area = stays + found, area + share
    assert stays > 1.5 * area, (stays, area)
