"""`ssr onnx`: writes a trained model or a retrained network as one ONNX file, and compares it with torch on images."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from pipelines.datasets.base import Sample
from pipelines.datasets.image import load_image
from pipelines.encoders.clip import ClipEncoder
from pipelines.encoders.weights import build_clip, resolve_clip
from pipelines.errors import ImageError, SsrError, UsageError
from pipelines.execution.progress import Progress, Silent
from pipelines.method.label_maps import winners
from pipelines.method.onnx_model import HalfStored, SegmentationNetwork, onnx_predictor
from pipelines.method.predictor import MakesLogits, Predictor
from pipelines.mmsegmentation.config import photo_scale
from pipelines.mmsegmentation.onnx_network import RetrainedNetwork
from pipelines.mmsegmentation.retrained import RetrainedPredictor
from pipelines.models.onnx_file import SUFFIX, read_onnx, write_onnx
from pipelines.models.segmenter import read_segmenter
from pipelines.options.onnx import OnnxOptions
from pipelines.options.train import PredictOptions
from pipelines.stages.predict import is_retrained, model_file, open_retrained
from pipelines.workdir.commands import command_for
from pipelines.workdir.workspace import Workspace

_ALIKE = 0.9
"""Share of pixels with the same class below which a file is wrong, and not only rounded differently."""


@dataclass(frozen=True)
class Compared:
    """The comparison of the ONNX file with torch in fp32, over some images.

    Attributes:
        images: Number of images.
        difference: Largest difference of a logit; the highest logit of each patch (retrained network: pixel) is 0.
        equal: Share of pixels whose class is the same.
        seconds: CPU seconds per image, of onnxruntime and of torch.
    """

    images: int
    difference: float
    equal: float
    seconds: tuple[float, float]


@dataclass(frozen=True)
class Written:
    """The result of `run`.

    Attributes:
        path: The ONNX file.
        size: Size of the file in bytes.
        compared: The comparison with torch; None if it was not requested.
        largest: Largest (long side, short side) to which a retrained network's images must be scaled; None for other models.
    """

    path: Path
    size: int
    compared: Compared | None
    largest: tuple[int, int] | None = None


@dataclass(frozen=True)
class _Export:
    """A network to write.

    Attributes:
        network: See `write_onnx`.
        note: The note of the file.
        twin: Computes the same logits with torch.
        patch_size: See `write_onnx`.
        grid: See `write_onnx`.
        largest: See `Written`.
    """

    network: nn.Module
    note: dict[str, Any]
    twin: MakesLogits
    patch_size: int
    grid: tuple[int, int]
    largest: tuple[int, int] | None = None


def run(workspace: Workspace, options: OnnxOptions, progress: Progress | None = None) -> Written:
    """Write the model, and compare it with torch.

    Args:
        workspace: Names the model and CLIP; its images are opened for the comparison alone.
        options: Model, file, precision, comparison.
        progress: Receives each image that is compared.

    Raises:
        UsageError: There is no usable model, or CLIP or the network cannot be exported.
        SsrError: onnxscript, onnxruntime or mmsegmentation is missing, the exporter cannot write the network, no image could be
            compared, or the file computes something else than torch.
    """
    progress = progress or Silent()
    source = model_file(workspace, options.model)
    if not source.is_file():
        command = command_for(workspace.work, "ssr train")
        raise UsageError(f"no model at {source}", f"run `{command}` first, or give --model FILE")
    retrained = is_retrained(source)
    path = options.output or (workspace.retrained if retrained else workspace.model).with_suffix(SUFFIX)
    if path.suffix != SUFFIX:
        raise UsageError(f"expected a name that ends in {SUFFIX}, found {str(path)!r}", "--output FILE.onnx")
    one_view = PredictOptions(scales=(1.0,), flip=False, long_side=options.long_side)
    made = (_retrained if retrained else _trained)(workspace, source, one_view)
    progress.note("writing the network takes a minute or two")
    network = HalfStored(made.network).eval() if options.fp16 else made.network
    write_onnx(path, network, made.patch_size, made.note, made.grid)
    compared = None
    if options.compare:
        onnx = onnx_predictor(read_onnx(path, torch.get_num_threads()), one_view)
        compared = _compare(workspace, options, onnx, made.twin, progress)
        if compared.equal < _ALIKE:
            found = f"{path} computes something else than torch: {compared.equal:.1%} of the pixels have the same class"
            raise SsrError(found, "another --model: a part of this one depends on the size of its input")
    return Written(path, path.stat().st_size, compared, made.largest)


def _trained(workspace: Workspace, source: Path, one_view: PredictOptions) -> _Export:
    weights = resolve_clip(workspace.clip.model, workspace.clip.pretrained)
    encoder, segmenter = ClipEncoder(build_clip(weights), torch.device("cpu")), read_segmenter(source, weights)
    network = SegmentationNetwork(encoder, segmenter).eval()
    note = {"classes": list(segmenter.classes), "supervision": segmenter.supervision, "clip": weights.provenance()}
    return _Export(network, note, Predictor(encoder, segmenter, one_view), network.tower.patch_size, (5, 7))


def _retrained(workspace: Workspace, source: Path, one_view: PredictOptions) -> _Export:
    found = open_retrained(workspace, source)
    largest = photo_scale(found.crop)
    note = {"classes": list(found.classes), "supervision": found.supervision, "largest": largest}
    twin = RetrainedPredictor(found, one_view, torch.device("cpu"), torch.float32)
    return _Export(RetrainedNetwork(found).eval(), note, twin, 1, (165, 231), largest)  # maps at stride 64 have sides above 1


def _compare(
    workspace: Workspace, options: OnnxOptions, onnx: MakesLogits, torch_twin: MakesLogits, progress: Progress
) -> Compared:
    samples = workspace.dataset.samples
    count = min(options.compare, len(samples))
    tally = workspace.tally("onnx", progress)
    differences, equal, pixels, spent = [0.0], 0, 0, np.zeros(2)
    progress.start("onnx: compare", count)
    for index in range(count):
        sample = samples[index * len(samples) // count]
        try:
            image = load_image(sample.image_path, sample.orient)
        except ImageError as error:
            tally.made(sample.image_id, error)
            continue
        found, ours = _timed(onnx, sample, image)
        expected, theirs = _timed(torch_twin, sample, image)
        spent += (ours, theirs)
        differences.append(float(np.abs(found - expected).max()))
        size = (image.height, image.width)
        equal += int((winners(found, size) == winners(expected, size)).sum())
        pixels += size[0] * size[1]
        tally.made(sample.image_id)
    progress.finish()
    if not pixels:
        raise SsrError("no image could be compared", f"see {tally.failures.path}")
    done = tally.counts.done
    return Compared(done, max(differences), equal / pixels, (float(spent[0] / done), float(spent[1] / done)))


def _timed(predictor: MakesLogits, sample: Sample, image: Image.Image) -> tuple[NDArray[np.float32], float]:
    """Return the logits of an image, ``(C + 1, h, w)``, and the CPU seconds that they took."""
    start = time.process_time()
    logits = predictor.logits([predictor.photo(sample, image)])[0].numpy()  # (C + 1, h, w)
    return logits, time.process_time() - start
