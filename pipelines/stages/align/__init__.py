"""`ssr align`; see `pipelines.stages.align.stage`."""

from __future__ import annotations

from pipelines.stages.align.stage import run

__all__ = ["run"]
