"""`ssr report`: shows the results of a work directory on one HTML page. Scores are read from earlier evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pipelines.errors import ImageError
from pipelines.evaluation.ground_truth import read_mask
from pipelines.execution.progress import Progress, Silent
from pipelines.figures.page import html_page
from pipelines.figures.score_sections import ablation_section, report_section
from pipelines.options.stages import ShowOptions
from pipelines.stages import ablation, show
from pipelines.stores.files import atomic_path
from pipelines.workdir.confidences import Confidences
from pipelines.workdir.scores import scores
from pipelines.workdir.workspace import Workspace

PAGE = "report.html"


def run(workspace: Workspace, options: ShowOptions, progress: Progress | None = None) -> Path:
    """Write ``WORK/report.html``: the best, median and worst mask by confidence, the ablation, evaluations, further panels.

    Args:
        workspace: Names the images and all existing outputs.
        options: Which images are shown, and whether ground truth is shown beside them, which opens it.
        progress: Receives each image.

    Returns:
        The path of the page, which needs no other file.

    Raises:
        SsrError: No image could be drawn, or a report is damaged.
        TooManyFailures: There are more bad images than allowed.
    """
    progress = progress or Silent()
    ranked = {} if options.ids else _ranked(workspace)
    chosen = _spread(list(ranked), options.count)
    drawn = show.draw(workspace, options.model_copy(update={"ids": ",".join(chosen)}) if chosen else options, progress)
    notes = dict(zip(chosen[:3], ("best", "median", "worst"), strict=False))
    panels = [
        replace(row, note=f"{notes.get(row.image_id, '')} confidence {ranked[row.image_id]:.2f}".strip()) if chosen else row
        for row in drawn.rows
    ]
    rows = ablation.scored(workspace.work)
    sections = [ablation_section(rows)] if rows else []
    for path, report, current in scores(workspace.work):
        if not current:
            progress.note(f"the scores of {report.what} are left out, since it was made again after `ssr eval {report.what}`")
            continue
        picture = path.parent / "confusion.png"
        sections.append(report_section(report, picture.read_bytes() if picture.is_file() else None, drawn.colours))
    target = workspace.work / PAGE
    with atomic_path(target) as temporary:
        html = html_page(f"ssr: {workspace.work.name}", panels, drawn.facts, drawn.colours, sections, len(notes))
        temporary.write_text(html, encoding="utf-8")
    return target


def _ranked(workspace: Workspace) -> dict[str, float]:
    """Return the confidence of the images whose mask has one, the best first."""
    found: dict[str, float] = {}
    with Confidences(workspace) as confidences:
        for sample in workspace.dataset.samples if confidences else ():
            path = workspace.masks / f"{sample.image_id}.png"
            try:
                values = confidences(sample.image_id, read_mask(path, len(workspace.dataset.classes.names)))
            except (ImageError, FileNotFoundError):
                continue
            if values:
                found[sample.image_id] = min(values.values())
    return dict(sorted(found.items(), key=lambda pair: (-pair[1], pair[0])))


def _spread(ranked: Sequence[str], count: int) -> list[str]:
    """Return the best, the median and the worst, then others evenly spaced from the best to the worst."""
    places = [0, len(ranked) // 2, len(ranked) - 1] if ranked else []
    places += [index * len(ranked) // count for index in range(count)]
    return list(dict.fromkeys(ranked[place] for place in places))[:count] if ranked else []
