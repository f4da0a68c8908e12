"""Options of ``[onnx]``: the trained model as one file for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from pipelines.options.sources import Options, option


class OnnxOptions(Options):
    """``[onnx]``: CLIP's image tower and the trained decoder as ONNX."""

    model: Annotated[Path, option("model of `ssr train` (.safetensors); auto = the one in WORK")] = Path("auto")
    output: Annotated[Path | None, option("file to write (.onnx); without it, WORK/model.onnx")] = None
    fp16: Annotated[
        bool,
        option("weights in half precision, half the size; they are widened when the file is opened: arithmetic stays fp32"),
    ] = False
    compare: Annotated[
        int,
        Field(ge=0, description="images of the split whose logits are compared with torch's, spread over the list; 0 = none"),
    ] = 8
    long_side: Annotated[
        int, Field(ge=0, description="compare: longest side of the model's input, pixels; 0 = the image's own")
    ] = 512
