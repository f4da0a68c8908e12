"""``ssr onnx``."""

from __future__ import annotations

from rich.markup import escape

from pipelines.options.onnx import OnnxOptions
from ssr_cli.console import ConsoleProgress, out
from ssr_cli.invocation import Invocation
from ssr_cli.parameters import command_with


@command_with("onnx", "dataset", "clip", "run")
def command(invocation: Invocation) -> None:
    """Write CLIP's image tower and the trained decoder as one ONNX file, and compare it with torch on images of the split."""
    from pipelines.models.onnx_file import INPUT, OPSET, OUTPUT
    from pipelines.stages import onnx

    with ConsoleProgress() as progress:
        written = onnx.run(invocation.workspace, invocation.options("onnx", OnnxOptions), progress)
    out.print(f"[bold]{escape(str(written.path))}[/]: {written.size / 2**20:.1f} MiB, opset {OPSET}")
    out.print(
        f"{INPUT} (batch, 3, height, width): fp32 RGB from 0 to 1, any batch, sides multiples of the patch; "
        f"{OUTPUT} (batch, classes + 1, rows, columns): fp32, background first"
    )
    if (compared := written.compared) is not None:
        ours, theirs = compared.seconds
        out.print(
            f"beside torch on {compared.images} images: logits differ by {compared.difference:.2g} at most, "
            f"{compared.equal:.4%} of the pixels have the same class; {ours:.2f} CPU seconds an image, torch {theirs:.2f}"
        )
