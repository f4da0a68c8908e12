"""``ssr onnx``."""

from __future__ import annotations

from rich.markup import escape

from pipelines.options.onnx import OnnxOptions
from ssr_cli.console import ConsoleProgress, out
from ssr_cli.invocation import Invocation
from ssr_cli.parameters import command_with


@command_with("onnx", "dataset", "clip", "run")
def command(invocation: Invocation) -> None:
    """Write the trained model, or a retrained network (--model retrained), as one ONNX file, compared with torch on images.

    The file of `ssr train`'s model holds CLIP's image tower and the decoder; `ssr predict --model FILE.onnx` runs either file.
    """
    from pipelines.models.onnx_file import INPUT, OPSET, OUTPUT
    from pipelines.stages import onnx

    with ConsoleProgress() as progress:
        written = onnx.run(invocation.workspace, invocation.options("onnx", OnnxOptions), progress)
    out.print(f"[bold]{escape(str(written.path))}[/]: {written.size / 2**20:.1f} MiB, opset {OPSET}")
    sides, map_sides = ("sides multiples of the patch", "rows, columns")
    if written.largest:
        sides, map_sides = "any size", "height, width"
    out.print(
        f"{INPUT} (batch, 3, height, width): fp32 RGB from 0 to 1, any batch, {sides}; "
        f"{OUTPUT} (batch, classes + 1, {map_sides}): fp32, background first"
    )
    if written.largest:
        long, short = written.largest
        out.print(
            f"it expects images whose shorter side is scaled to {short} pixels, or the longer to {long} if that is smaller"
        )
    if (compared := written.compared) is not None:
        ours, theirs = compared.seconds
        out.print(
            f"beside torch on {compared.images} images: logits differ by {compared.difference:.2g} at most, "
            f"{compared.equal:.4%} of the pixels have the same class; {ours:.2f} CPU seconds an image, torch {theirs:.2f}"
        )
