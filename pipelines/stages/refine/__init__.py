"""`ssr refine`; see `pipelines.stages.refine.stage`."""

from __future__ import annotations

from pipelines.stages.refine.stage import STAGE, outputs, run

__all__ = ["STAGE", "outputs", "run"]
