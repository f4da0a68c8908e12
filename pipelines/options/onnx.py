"""Options of ``[onnx]``: the trained model as one file for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from pipelines.options.sources import Options, option


class OnnxOptions(Options):
    """``[onnx]``: CLIP's image tower and the trained decoder as ONNX."""

    model: Annotated[Path, option("Model of `ssr train` (.safetensors); auto is the one in WORK.")] = Path("auto")
    output: Annotated[Path | None, option("File to write (.onnx); without it, WORK/model.onnx.")] = None
    fp16: Annotated[
        bool,
        option(
            "Store weights in half precision, in half the space; they are widened when the file is opened, so "
            "arithmetic stays fp32."
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
        Field(ge=0, description="Longest side of the model's input in that comparison, in pixels; 0 means the image's own."),
    ] = 512
