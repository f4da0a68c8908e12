"""`ssr onnx`: writes the trained model as one ONNX file, and compares it with torch on images of the split."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pipelines.datasets.base import Sample
from pipelines.datasets.image import load_image
from pipelines.encoders.clip import ClipEncoder
from pipelines.encoders.weights import build_clip, resolve_clip
from pipelines.errors import ImageError, SsrError, UsageError
from pipelines.execution.progress import Progress, Silent
from pipelines.method.label_maps import winners
from pipelines.method.onnx_model import HalfStored, OnnxPredictor, SegmentationNetwork
from pipelines.method.predictor import MakesLogits, Predictor
from pipelines.models.onnx_file import SUFFIX, read_onnx, write_onnx
from pipelines.models.segmenter import read_segmenter
from pipelines.options.onnx import OnnxOptions
from pipelines.options.train import PredictOptions
from pipelines.workdir.commands import command_for
from pipelines.workdir.workspace import Workspace


@dataclass(frozen=True)
class Compared:
    """The comparison of the ONNX file with torch in fp32, over some images.

    Attributes:
        images: Number of images.
        difference: Largest difference of a logit; the highest logit of each patch is 0.
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
    """

    path: Path
    size: int
    compared: Compared | None


def run(workspace: Workspace, options: OnnxOptions, progress: Progress | None = None) -> Written:
    """Write the model, and compare it with torch.

    Args:
        workspace: Names the model and CLIP; its images are opened for the comparison alone.
        options: Model, file, precision, comparison.
        progress: Receives each image that is compared.

    Raises:
        UsageError: There is no usable model, or CLIP cannot be exported.
        SsrError: onnxscript or onnxruntime is missing, or no image could be compared.
    """
    progress = progress or Silent()
    path = options.output or workspace.model.with_suffix(SUFFIX)
    if path.suffix != SUFFIX:
        raise UsageError(f"expected a name that ends in {SUFFIX}, found {str(path)!r}", "--output FILE.onnx")
    source = workspace.model if options.model.name == "auto" and not options.model.is_file() else options.model
    if not source.is_file():
        command = command_for(workspace.work, "ssr train")
        raise UsageError(f"no model at {source}", f"run `{command}` first, or give --model FILE")
    weights = resolve_clip(workspace.clip.model, workspace.clip.pretrained)
    encoder, segmenter = ClipEncoder(build_clip(weights), torch.device("cpu")), read_segmenter(source, weights)
    network = SegmentationNetwork(encoder, segmenter).eval()
    progress.note("writing the network takes a minute or two")
    note = {"classes": list(segmenter.classes), "supervision": segmenter.supervision, "clip": weights.provenance()}
    write_onnx(path, HalfStored(network).eval() if options.fp16 else network, network.tower.patch_size, note)
    compared = None
    if options.compare:
        one_view = PredictOptions(scales=(1.0,), flip=False, long_side=options.long_side)
        torch_twin = Predictor(encoder, segmenter, one_view)
        onnx = OnnxPredictor(read_onnx(path, torch.get_num_threads()), one_view)
        compared = _compare(workspace, options, onnx, torch_twin, progress)
    return Written(path, path.stat().st_size, compared)


def _compare(
    workspace: Workspace, options: OnnxOptions, onnx: OnnxPredictor, torch_twin: Predictor, progress: Progress
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
