"""A retrained network, as `ssr retrain` writes it and `ssr predict` reads it: weights, and the design that they fit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from pipelines.datasets.base import Sample
from pipelines.encoders.model_config import TimmModel
from pipelines.errors import SsrError, UsageError
from pipelines.method.evidence import Grid
from pipelines.method.photo import Photo
from pipelines.method.predictor import mean_logits
from pipelines.method.scaled_photo import scaled_photo
from pipelines.mmsegmentation.backbone import MIT, Backbone, mit_backbone, timm_backbone
from pipelines.mmsegmentation.config import photo_scale
from pipelines.mmsegmentation.imports import import_mmsegmentation
from pipelines.mmsegmentation.network import OUTPUT_STRIDE, network
from pipelines.models.segmenter import SUPERVISIONS
from pipelines.options.retrain import NETWORKS
from pipelines.options.train import PredictOptions
from pipelines.stores.checkpoint import read_checkpoint, write_checkpoint

FORMAT = "ssr retrained network 1"
_LARGEST, _DEEPEST = 4096, 128


@dataclass(frozen=True)
class Design:
    """The design of a network, without its weights.

    Attributes:
        model: ``deeplabv3plus``, ``segformer``, ``upernet``, or the path of a config file.
        backbone: ``mit_b0`` to ``mit_b5``, or a model of timm; None: the config file has one.
        channels: Width of the head; 0 is the network's default.
        classes: Foreground classes.
        crop: Side of the crops of the training, pixels.
    """

    model: str
    backbone: TimmModel | str | None
    channels: int
    classes: tuple[str, ...]
    crop: int

    def parts(self, weights: str) -> Backbone:
        """Return the backbone of one of `NETWORKS`; for ``weights`` see `timm_backbone`."""
        if isinstance(self.backbone, str):
            return mit_backbone(self.backbone, weights)
        if self.backbone is None:
            raise ValueError("a config file brings its own backbone")
        return timm_backbone(self.backbone, weights, OUTPUT_STRIDE.get(self.model))

    def config(self, weights: str = "none", class_weights: Sequence[float] | None = None) -> dict[str, Any]:
        """Return the config from which mmengine builds the network."""
        if self.model not in NETWORKS:
            return network_of_file(Path(self.model), len(self.classes) + 1, self.crop)
        return network(self.model, self.parts(weights), len(self.classes) + 1, self.crop, self.channels, class_weights)

    def note(self) -> dict[str, Any]:
        """Return the design as the JSON note beside the weights."""
        backbone: Any = self.backbone
        if isinstance(backbone, TimmModel):
            backbone = {
                "name": backbone.name,
                "arguments": dict(backbone.arguments),
                "normalisation": dict(backbone.normalisation),
            }
        file = None if self.model in NETWORKS else digest_of(self.config())
        return {"model": file or self.model, "backbone": backbone, "channels": self.channels, "crop": self.crop}


@dataclass(frozen=True)
class Retrained:
    """A network with the classes and crops of its training.

    Attributes:
        model: mmsegmentation's network, in evaluation mode.
        classes: Names of the foreground classes, in the order of its logits.
        crop: Side of the crops of the training; images are scaled as for these.
        supervision: ``pseudo``, ``corrected`` (some masks were corrected), or ``masks`` (ground truth, an upper bound).
        iteration: Number of steps of its training.
    """

    model: nn.Module
    classes: tuple[str, ...]
    crop: int
    supervision: str
    iteration: int


def network_of_file(path: Path, classes: int, crop: int) -> dict[str, Any]:
    """Return the network of a config file for the dataset's number of classes. The file is run as Python.

    Raises:
        UsageError: There is no such file, or it has no network.
    """
    from mmengine.config import Config

    if not path.is_file():
        raise UsageError(f"expected {', '.join(NETWORKS)} or a config FILE.py, found {str(path)!r}", "--model")
    try:
        model: dict[str, Any] = Config.fromfile(path).to_dict()["model"]
        heads = [model["decode_head"], model.get("auxiliary_head") or []]
        for head in (one for found in heads for one in (found if isinstance(found, list) else [found])):
            head["num_classes"] = classes
            head.pop("out_channels", None)
    except Exception as error:  # the file may run any code
        found = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UsageError(f"{path} is no mmsegmentation config with a decode_head ({found})", "--model") from error
    if isinstance(model.get("data_preprocessor"), dict):
        model["data_preprocessor"]["size"] = (crop, crop)
    return model


def digest_of(model: dict[str, Any]) -> str:
    """Return SHA-256 (hex) of a network's config."""
    return hashlib.sha256(json.dumps(model, sort_keys=True, default=str).encode()).hexdigest()


def build(config: dict[str, Any]) -> nn.Module:
    """Build a network with random weights.

    Raises:
        SsrError: mmsegmentation is missing, or it cannot build the network.
    """
    import_mmsegmentation()
    from mmengine.config import ConfigDict
    from mmseg.registry import MODELS

    try:
        model: nn.Module = MODELS.build(ConfigDict(config))
    except SsrError:
        raise
    except Exception as error:
        found = f"{type(error).__name__}: {error}".splitlines()[0]
        raise SsrError(f"mmsegmentation cannot build the network: {found}", "--model, --backbone") from error
    return model


def write_retrained(
    path: Path, model: nn.Module, design: Design, supervision: str, iteration: int, described: dict[str, Any] | None = None
) -> None:
    """Write a network's weights and its design: ``described``, an earlier note of the design, or a new one."""
    note = {
        "format": FORMAT,
        "classes": list(design.classes),
        "supervision": supervision,
        "iteration": iteration,
        "network": described or design.note(),
    }
    write_checkpoint(path, model.state_dict(), note)


def read_retrained(path: Path, flag: str = "--model", config_file: Path | None = None) -> Retrained:
    """Read a network.

    Args:
        path: File written by `write_retrained`.
        flag: Flag that errors name.
        config_file: The config that this work directory wrote. It is run as Python, only for a network of a config file; None
            refuses such a network.

    Raises:
        UsageError: The file is not from `ssr retrain`, is damaged, or has a network of a config file without that file.
        SsrError: mmsegmentation is missing.
    """
    tensors, note = read_checkpoint(path, flag)
    if note.get("format") != FORMAT:
        raise UsageError(f"{path} does not hold a retrained network", f"{flag}: a file written by `ssr retrain`")
    import_mmsegmentation()
    try:
        described, classes, supervision = note["network"], note["classes"], note["supervision"]
        _check(described, classes, supervision, tensors)
        config = _config(described, tuple(classes), path, flag, config_file)
        if isinstance(described["backbone"], dict):  # these sizes must cost no memory before they are checked
            with torch.device("meta"):
                wanted = {name: tensor.shape for name, tensor in build(config).state_dict().items()}
            if wanted != {name: tensor.shape for name, tensor in tensors.items()}:
                raise ValueError("other tensors")
        model = build(config)
        model.load_state_dict(tensors)
        return Retrained(
            model.eval().requires_grad_(False), tuple(classes), described["crop"], supervision, int(note["iteration"])
        )
    except _RefusedError:
        raise
    except Exception as error:  # a damaged note may raise any error inside mmsegmentation
        raise UsageError(f"{path} is damaged: its tensors are not those of its network", flag) from error


class _RefusedError(UsageError):
    """An error whose cause is not the file itself."""


def _check(described: dict[str, Any], classes: Any, supervision: Any, tensors: dict[str, Tensor]) -> None:
    """Check that sizes are plausible, before anything of these sizes is built."""
    sizes = [4 * described["channels"], described["crop"] - 1, 16 * len(classes)]  # of 1,024 channels in heads, 255 classes
    sound = (
        supervision in SUPERVISIONS
        and isinstance(classes, list)
        and all(isinstance(name, str) for name in classes)
        and all(isinstance(size, int) and 0 <= size <= _LARGEST for size in sizes)
        and all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values() if tensor.is_floating_point())
    )
    if not sound:
        raise ValueError("no such network")


def _config(described: dict[str, Any], classes: tuple[str, ...], path: Path, flag: str, file: Path | None) -> dict[str, Any]:
    name, crop = described["model"], described["crop"]
    if name in NETWORKS:
        return Design(name, _described(described["backbone"]), described["channels"], classes, crop).config()
    if file is None or not file.is_file():
        hint = f"{flag} retrained, in the work directory that trained it"
        raise _RefusedError(f"{path} holds a network of a config file, which is not run from elsewhere", hint)
    config = network_of_file(file, len(classes) + 1, crop)
    if digest_of(config) != name:
        raise _RefusedError(f"{file} does not describe the network of {path} any more", "ssr retrain --force")
    backbone = config.get("backbone", {})
    if "pretrained" in backbone:  # the weights are in the file, so nothing is downloaded
        backbone["pretrained"] = False if backbone.get("type") == "TIMMBackbone" else None
    return config


def _described(backbone: Any) -> TimmModel | str:
    """Return a backbone of names and plain numbers alone, so that a foreign file cannot load anything."""
    if isinstance(backbone, str) and backbone in MIT:
        return backbone
    name, arguments, normalisation = backbone["name"], backbone["arguments"], backbone["normalisation"]
    plain = all(isinstance(value, int | float) and abs(value) <= _LARGEST for value in arguments.values())
    statistics = {key: [float(value) for value in normalisation[key]] for key in ("mean", "std") if key in normalisation}
    usual = all(len(values) == 3 and all(0 <= value <= 1 for value in values) for values in statistics.values())
    if not (plain and usual and all(statistics.get("std", [1])) and name.replace("_", "").replace(".", "").isalnum()):
        raise ValueError("no such backbone")
    if arguments.get("depth", 0) > _DEEPEST or not arguments.keys().isdisjoint({"out_indices", "features_only", "pretrained"}):
        raise ValueError("no such backbone")
    return TimmModel(name, arguments, statistics)


class RetrainedPredictor:
    """A retrained network that computes the logits of batches of images. It holds no files.

    Args:
        retrained: The network.
        options: Scales and flip; ``long_side`` is ignored, because images are scaled as in the training.
        device: Device of the network.
        dtype: Precision; bf16 runs under autocast.
    """

    def __init__(self, retrained: Retrained, options: PredictOptions, device: torch.device, dtype: torch.dtype) -> None:
        self.model, self.crop = retrained.model.to(device), retrained.crop
        self.options, self.device, self.dtype = options, device, dtype

    def photo(self, sample: Sample, image: Image.Image) -> Photo:
        """Resize a decoded image to every scale, with mmcv's own resampling.

        Raises:
            ImageError: The image is too thin.
        """
        import mmcv

        def resize(pixels: NDArray[np.uint8], size: Grid) -> NDArray[np.uint8]:
            resized: NDArray[np.uint8] = mmcv.imresize(pixels, size[::-1])
            return resized

        photo = scaled_photo(sample, image, photo_scale(self.crop), self.options.scales, resize)
        return replace(photo, inputs=tuple(pixels.flip(0) for pixels in photo.inputs))  # (3, H', W') BGR each

    @torch.inference_mode()
    def logits(self, photos: Sequence[Photo]) -> Tensor:
        """Compute the logits of images of one size, averaged over scales and mirror images.

        Args:
            photos: A batch; all have the same size at every scale.

        Returns:
            ``(B, C + 1, h, w)`` fp32, background first, at the size of scale 1; the highest logit of each pixel is 0.
        """
        return mean_logits(self._pass, photos, self.options)

    def _pass(self, images: Tensor) -> Tensor:
        from mmseg.structures import SegDataSample

        height, width = images.shape[-2:]
        plain = {"ori_shape": (height, width), "img_shape": (height, width)}
        samples = [SegDataSample(metainfo=dict(plain)) for _ in images]
        model: Any = self.model
        half = self.device.type == "cuda" and self.dtype != torch.float32
        data = model.data_preprocessor({"inputs": list(images), "data_samples": samples}, False)
        with torch.autocast(self.device.type, self.dtype, enabled=half):
            logits: Tensor = model.inference(data["inputs"], [sample.metainfo for sample in data["data_samples"]])
        return logits[..., :height, :width].float()  # padding is at the right and below
