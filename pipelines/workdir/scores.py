"""The reports of `ssr eval` in a work directory, and whether what they scored is still there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pipelines.evaluation.report import Report, read_report
from pipelines.stores.manifest import read_manifest
from pipelines.workdir.workspace import PREDICTED, REPORTS


class Score(NamedTuple):
    """A report of a work directory.

    Attributes:
        path: Its ``report.json``.
        report: What it says.
        current: Whether its output has not been made again with other options since.
    """

    path: Path
    report: Report
    current: bool


def scores(work: Path) -> Iterator[Score]:
    """Yield every report, in the order of their names.

    Raises:
        SsrError: A report or manifest is damaged.
    """
    for path in sorted((work / REPORTS).glob("*/report.json")):
        report = read_report(path)
        output = _output_of(work, report.what)
        manifest = None if output is None else read_manifest(output)
        yield Score(path, report, manifest is None or manifest.options_digest == report.options_digest)


def _output_of(work: Path, what: str) -> Path | None:
    """Return the store or folder that a report names; None for a folder elsewhere."""
    if what in {"cams", "refined"}:
        return work / f"{what}.h5"
    if what == "masks":
        return work / what
    parent, _, name = what.partition("-")
    return work / parent / name if parent in PREDICTED else None
