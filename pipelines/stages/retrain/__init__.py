"""`ssr retrain`; see `pipelines.stages.retrain.stage`."""

from __future__ import annotations

from pipelines.stages.retrain.stage import run

__all__ = ["run"]
