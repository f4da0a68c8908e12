"""`ssr train`; see `pipelines.stages.train.stage`."""

from __future__ import annotations

from pipelines.stages.train.stage import run

__all__ = ["run"]
