"""Options of ``[onnx]``: a trained model or a retrained network as one file for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from pipelines.options.sources import Options, option


class OnnxOptions(Options):
    """``[onnx]``: CLIP's image tower and the trained decoder as ONNX, or a retrained network."""

    model: Annotated[
        Path,
        option(
            "Model: a file of `ssr train` or `ssr retrain` (.safetensors); auto means the one of `ssr train` in WORK, "
            "retrained that of `ssr retrain`."
        ),
    ] = Path("auto")
    output: Annotated[
        Path | None,
        option("File to write (.onnx); without it, WORK/model.onnx, or WORK/retrained.onnx for a retrained network."),
    ] = None
    fp16: Annotated[
        bool,
        option(
            "Store weights in half precision, in half the space; vectors such as the statistics of norms stay "
            "fp32. Weights are widened when the file is opened, so arithmetic stays fp32."
        ),
    ] = False
    compare: Annotated[
        int,
        Field(
            ge=0,
            description="Images of the split whose logits are compared with torch's, spread over the list; 0 compares none.",
        ),
    ] = 8
    long_side: Annotated[
        int,
        Field(
            ge=0,
            description="Longest side of the model's input in that comparison, in pixels; 0 means the image's own, and a "
            "retrained network has its own sizes.",
        ),
    ] = 512
