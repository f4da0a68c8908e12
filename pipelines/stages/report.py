"""`ssr report`: what a work directory has, on one HTML page. Scores come from evaluations that were made before."""

from __future__ import annotations

from pathlib import Path

from pipelines.evaluation.report import read_report
from pipelines.execution.progress import Progress, Silent
from pipelines.figures.page import html_page
from pipelines.figures.score_sections import ablation_section, report_section
from pipelines.options.stages import ShowOptions
from pipelines.stages import ablation, show
from pipelines.stages.evaluate import reports_in
from pipelines.stores.files import atomic_path
from pipelines.workdir.workspace import Workspace

PAGE = "report.html"


def run(workspace: Workspace, options: ShowOptions, progress: Progress | None = None) -> Path:
    """Write ``WORK/report.html``: the ablation, every evaluation, panels of photos.

    Args:
        workspace: Images and all existing outputs.
        options: Which photos, and whether ground truth is shown beside them (opens it).
        progress: Receives each photo.

    Returns:
        The page; it needs no other file.

    Raises:
        SsrError: No photo could be drawn, or a damaged report.
        TooManyFailures: More bad photos than allowed.
    """
    drawn = show.draw(workspace, options, progress or Silent())
    rows = ablation.scored(workspace.work)
    sections = [ablation_section(rows)] if rows else []
    for path in reports_in(workspace.work):
        report = read_report(path)
        picture = path.parent / "confusion.png"
        sections.append(report_section(report, picture.read_bytes() if picture.is_file() else None, drawn.colours))
    target = workspace.work / PAGE
    with atomic_path(target) as temporary:
        html = html_page(f"ssr: {workspace.work.name}", drawn.rows, drawn.facts, drawn.colours, sections)
        temporary.write_text(html, encoding="utf-8")
    return target
