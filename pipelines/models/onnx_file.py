"""A segmentation model as one ONNX file, written by torch's exporter and read by onnxruntime, with a note on the model."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from pipelines.errors import SsrError, UsageError, is_out_of_memory
from pipelines.models.segmenter import SUPERVISIONS
from pipelines.stores.files import atomic_path

SUFFIX = ".onnx"
OPSET = 18
FORMAT = "ssr segmentation model 1"
SCALED = "ssr network of scaled images 1"
"""Format of a network of `ssr retrain`: its note has ``largest``, to which `ssr predict` must scale images."""
NOTE = "ssr"
"""Key of the file's metadata that holds the note, as JSON."""
INPUT, OUTPUT = "pixels", "logits"
_CURE = "pip install 'ssr-wsss[onnx]'"
_LONGEST = 1 << 16
"""Longest side, in pixels, that a file may ask for."""


@dataclass(frozen=True)
class OnnxModel:
    """An open ONNX file.

    Attributes:
        session: Session of onnxruntime.
        classes: Names of the foreground classes, in the order of its logits.
        patch_size: Divisor of the sides of its input.
        supervision: Supervision of the model, see `Segmenter`.
        largest: Largest (long side, short side) to which its images are scaled; None for a model of `ssr train`.
    """

    session: Any
    classes: tuple[str, ...]
    patch_size: int
    supervision: str
    largest: tuple[int, int] | None = None

    def logits(self, pixels: Tensor) -> Tensor:
        """Compute logits ``(B, C + 1, h, w)`` fp32 of RGB in [0, 1], ``(B, 3, H, W)`` fp32.

        Raises:
            MemoryError: There is not enough memory.
            SsrError: The network does not run on this size.
        """
        try:
            return torch.from_numpy(self.session.run([OUTPUT], {INPUT: pixels.cpu().numpy()})[0])
        except Exception as error:  # onnxruntime raises its own types
            if is_out_of_memory(error):
                raise MemoryError(str(error)) from error
            height, width = pixels.shape[-2:]
            found = str(error).splitlines()[0]
            raise SsrError(f"onnxruntime cannot run the model on {width} x {height} pixels ({found})", "--model") from error


def write_onnx(
    path: Path, network: nn.Module, patch_size: int, note: Mapping[str, Any], grid: tuple[int, int] = (5, 7)
) -> None:
    """Write a network and its note to a file.

    Args:
        path: Path of the file.
        network: Maps RGB in [0, 1], ``(B, 3, H, W)`` fp32 with sides that are multiples of the patch, to logits ``(B, C + 1, h,
            w)`` fp32; on the CPU.
        patch_size: Patch size of the network; 1 for a network of images of any size.
        note: Content that `read_onnx` requires, which is classes, supervision and, for a network of scaled images,
            ``largest``, and further entries.
        grid: Patches along the sides of the exporter's example; no map inside the network may have a side of 1, which the
            exporter would take for a constant.

    Raises:
        SsrError: The exporter is not installed, or cannot write this network.
    """
    try:
        import onnxscript  # noqa: F401 - torch's exporter needs it
    except ImportError as error:
        raise SsrError("an ONNX file needs onnxscript, which is not installed", _CURE) from error
    free = {0: Dim("batch"), 2: patch_size * Dim("rows"), 3: patch_size * Dim("columns")}
    if patch_size == 1:  # without a patch, sides inside the network depend on roundings that the exporter cannot prove
        free = dict.fromkeys((0, 2, 3), Dim.DYNAMIC)
    example = torch.rand(2, 3, *(side * patch_size for side in grid))  # (B, 3, H, W)
    try:
        with _exporting():
            program = torch.onnx.export(
                network,
                (example,),
                dynamo=True,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=(free,),
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        cause = error.__cause__ or error
        found = f"{type(cause).__name__}: {cause}".strip().splitlines()[0]
        raise SsrError(f"torch's exporter cannot write this network as ONNX ({found})", "--model") from error
    if program is None:
        raise SsrError("torch's exporter made no ONNX program")
    shape = program.model.graph.inputs[0].shape
    if shape is None or any(isinstance(shape[axis], int) for axis in free):  # the exporter's last resort is one size
        raise SsrError("torch's exporter cannot write this network for images of any size", "--model")
    program.model.metadata_props[NOTE] = json.dumps(
        {**note, "format": SCALED if "largest" in note else FORMAT, "patch_size": patch_size}, sort_keys=True
    )
    with atomic_path(path) as temporary:
        program.save(temporary, external_data=False)


@contextmanager
def _exporting() -> Iterator[None]:
    """Switch off torch's fused attention, which has no counterpart in ONNX, and messages on constants that are not folded."""
    fused, logger = torch.backends.mha.get_fastpath_enabled(), logging.getLogger("onnxscript")
    level = logger.level
    torch.backends.mha.set_fastpath_enabled(False)
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        logger.setLevel(level)


def read_onnx(path: Path, threads: int = 0) -> OnnxModel:
    """Open a file.

    Args:
        path: File of `write_onnx`.
        threads: Threads of onnxruntime; 0 = its own default.

    Raises:
        UsageError: The file is missing, damaged, or of another program.
        SsrError: onnxruntime is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise SsrError(f"{path} needs onnxruntime, which is not installed", _CURE) from error
    if not path.is_file():
        raise UsageError(f"no model at {path}", "--model")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        note = json.loads(session.get_modelmeta().custom_metadata_map.get(NOTE, "null"))
    except Exception as error:  # onnxruntime raises its own types for bytes that are no model
        raise UsageError(f"{path} is not a readable ONNX file", "--model") from error
    if not isinstance(note, dict) or note.get("format") not in {FORMAT, SCALED}:
        raise UsageError(f"{path} was not written by `ssr onnx`: it has no note on its model", "--model")
    classes, patch_size, supervision = note.get("classes"), note.get("patch_size"), note.get("supervision")
    named = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
    sides = note.get("largest") if note["format"] == SCALED else [1, 1]
    sized = (
        isinstance(sides, list) and len(sides) == 2 and all(isinstance(side, int) and 0 < side <= _LONGEST for side in sides)
    )
    if not (named and sized and isinstance(patch_size, int) and patch_size > 0 and supervision in SUPERVISIONS):
        raise UsageError(f"{path} is damaged: its note is not that of a segmentation model", "--model")
    largest = (max(sides), min(sides)) if sides and note["format"] == SCALED else None
    return OnnxModel(session, tuple(map(str, classes or ())), patch_size, supervision, largest)
