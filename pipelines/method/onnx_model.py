"""The frozen CLIP and a trained decoder as one network, and logits from ONNX files, of this network or a retrained one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor, nn
from torch.func import functional_call

from pipelines.datasets.base import Sample
from pipelines.encoders.clip import ClipEncoder
from pipelines.encoders.tower import walk
from pipelines.errors import UsageError
from pipelines.method.photo import Photo
from pipelines.method.predictor import MakesLogits, mean_logits, segmenter_input
from pipelines.method.scaled_photo import scaled_photo
from pipelines.models.onnx_file import OnnxModel
from pipelines.models.segmenter import Segmenter
from pipelines.ops.byte_resize import resized_bytes
from pipelines.options.train import PredictOptions

_RGB = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
"""Mean and standard deviation that leave RGB in [0, 1] unchanged, because the network of an ONNX file normalises its input."""


class SegmentationNetwork(nn.Module):
    """The network that maps RGB to logits, on the CPU in fp32.

    Args:
        encoder: The frozen CLIP, in fp32 on the CPU; its modules are shared.
        segmenter: The trained model.

    Raises:
        UsageError: The positions of the tower cannot follow an input of any size in ONNX.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, encoder: ClipEncoder, segmenter: Segmenter) -> None:
        from pipelines.encoders.open_clip_vit import OpenClipViT  # here, because a finished prediction needs no open_clip

        super().__init__()
        if not isinstance(encoder.tower, OpenClipViT):
            found = f"{encoder.weights.name} is not open_clip's own ViT: its positions are not resized by an operator of ONNX"
            raise UsageError(found, "--clip-model, one such as ViT-B-16")
        self.tower, self.blocks = encoder.tower, segmenter.blocks
        self.clip, self.decoder = encoder.model, segmenter.decoder
        self.register_buffer("mean", torch.tensor(encoder.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(encoder.std).view(1, 3, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """Map RGB in [0, 1], ``(B, 3, H, W)``, sides multiples of the patch, to logits ``(B, C + 1, h, w)``, both fp32."""
        walked = walk(self.tower, (pixels - self.mean) / self.std, token_blocks=self.blocks)
        assert walked.block_tokens is not None  # noqa: S101 - asked for
        text, last = self.decoder.text, walked.block_tokens[-1]  # (B, N, D)
        joint = None if text is None else self.tower.tail(walked.grid).project(last)  # (B, N, E)
        logits: Tensor = self.decoder(walked.block_tokens, walked.grid, joint=joint)[0]  # (B, C + 1, h, w)
        return logits


class HalfStored(nn.Module):
    """A network whose weights are stored in half precision and widened where they are used; its arithmetic stays fp32.

    Vectors stay in fp32: they are few, and a variance of a batch norm may lie below the smallest number of half precision.

    Args:
        network: The network, which maps a tensor to a tensor.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._network = (network,)  # in a tuple it is no submodule, so that the file does not hold its fp32 weights
        self._names = tuple(network.state_dict())
        for number, tensor in enumerate(network.state_dict().values()):
            vector = tensor.numel() == max(tensor.shape, default=1)
            self.register_buffer(f"stored_{number}", tensor if vector else tensor.half())

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the network's output."""
        widened = {
            name: tensor.float() if tensor.dtype == torch.float16 else tensor
            for name, tensor in zip(self._names, self.buffers(), strict=True)
        }
        result: Tensor = functional_call(self._network[0], widened, (pixels,))
        return result


class OnnxPredictor:
    """An ONNX file of `ssr train`'s model that computes logits of batches of images on the CPU; torch resizes and averages.

    Args:
        model: The opened file.
        options: Scales, flip, ``long_side``.
    """

    def __init__(self, model: OnnxModel, options: PredictOptions) -> None:
        self.model, self.options = model, options

    def photo(self, sample: Sample, image: Image.Image) -> Photo:
        """Reduce a decoded image to ``long_side`` and resize it to every scale; inputs are RGB in [0, 1]."""
        return segmenter_input(sample, image, self.options, self.model.patch_size, *_RGB)

    def logits(self, photos: Sequence[Photo]) -> Tensor:
        """Do the same as `pipelines.method.predictor.Predictor.logits`."""
        return mean_logits(self.model.logits, photos, self.options)


class ScaledOnnxPredictor:
    """An ONNX file of a retrained network, which computes the logits of images that are scaled as in its training.

    Args:
        model: The opened file, with ``largest``.
        options: Scales and flip; ``long_side`` is ignored.

    Raises:
        ValueError: The file does not ask for scaled images.
    """

    def __init__(self, model: OnnxModel, options: PredictOptions) -> None:
        if model.largest is None:
            raise ValueError("expected a network of scaled images")
        self.model, self.largest, self.options = model, model.largest, options

    def photo(self, sample: Sample, image: Image.Image) -> Photo:
        """Resize a decoded image to every scale.

        Raises:
            ImageError: The image is too thin.
        """
        return scaled_photo(sample, image, self.largest, self.options.scales, resized_bytes)

    def logits(self, photos: Sequence[Photo]) -> Tensor:
        """Do the same as `pipelines.method.predictor.Predictor.logits`, at the size of scale 1."""
        return mean_logits(lambda images: self.model.logits(images / 255), photos, self.options)


def onnx_predictor(model: OnnxModel, options: PredictOptions) -> MakesLogits:
    """Return the predictor that prepares images as an ONNX file needs them."""
    return OnnxPredictor(model, options) if model.largest is None else ScaledOnnxPredictor(model, options)
