"""`ssr refine`; see `pipelines.stages.refine.stage`."""

from __future__ import annotations

from pipelines.stages.refine.stage import run

__all__ = ["run"]
