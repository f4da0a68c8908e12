"""``ssr train``."""

from __future__ import annotations

from pipelines.options.align import AlignOptions
from pipelines.options.stages import CamsOptions, RefineOptions
from pipelines.options.train import TrainOptions
from ssr_cli.invocation import Invocation
from ssr_cli.parameters import command_with
from ssr_cli.run_command import run_stage


@command_with("train", "dataset", "clip", "dino", "run")
def command(invocation: Invocation) -> None:
    """Train a segmentation decoder on the frozen CLIP with pseudo-masks made online, into WORK/model.safetensors."""
    from pipelines.stages.train import stage as train
    from pipelines.stages.train.settings import TrainSections

    sections = TrainSections(
        invocation.options("train", TrainOptions),
        invocation.options("align", AlignOptions),
        invocation.options("cams", CamsOptions),
        invocation.options("refine", RefineOptions),
    )
    run_stage(
        invocation, lambda workspace, progress: train.run(workspace, sections, progress), then="ssr predict", graceful_stop=True
    )
