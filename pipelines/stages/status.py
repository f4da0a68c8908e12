"""`ssr status`: what is done in a work directory, and what comes next."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipelines.evaluation.report import Report, read_report
from pipelines.stages.evaluate import reports_in
from pipelines.stages.workspace import recall
from pipelines.stores.array_store import ArrayReader, store_exists
from pipelines.stores.manifest import Manifest
from pipelines.stores.mask_store import written_masks

OUTPUTS = {
    # output: the command that makes it
    "superpixels": "ssr superpixels",
    "cams": "ssr cams",
    "refined": "ssr refine",
    "masks": "ssr refine",
}


@dataclass(frozen=True)
class OutputStatus:
    """One output of a work directory.

    Attributes:
        name: ``superpixels``, ``cams``, ``refined`` or ``masks``.
        images: Images it holds.
        total: Images of the dataset when it was last worked on; 0 if it was never begun.
        failed: Bad images of the last run.
        complete: The last run reached its end.
        options_digest: Of the options that made it.
        updated: UTC time of the last change.
    """

    name: str
    images: int
    total: int
    failed: int
    complete: bool
    options_digest: str
    updated: str


@dataclass(frozen=True)
class WorkStatus:
    """A work directory at a glance.

    Attributes:
        dataset: Kind, root and split, as remembered.
        recipe: Recipe in force.
        outputs: In the order of the stages.
        reports: Evaluations so far.
        next_command: The one obvious next command.
    """

    dataset: str
    recipe: str
    outputs: list[OutputStatus]
    reports: list[Report]
    next_command: str


def status(work: Path) -> WorkStatus:
    """Look at a work directory; nothing is changed, no image or mask is opened.

    Raises:
        SsrError: A damaged manifest or store.
    """
    memory = recall(work)
    dataset = memory.get("dataset") or {}
    outputs = [_output(work, name) for name in OUTPUTS]
    reports = [read_report(path) for path in reports_in(work)]
    return WorkStatus(
        dataset=f"{dataset.get('kind', '?')}, {dataset.get('split', '?')}, {dataset.get('root', '?')}",
        recipe=str(memory.get("recipe") or "?"),
        outputs=outputs,
        reports=reports,
        next_command=_next(outputs, reports) + f" --work {work}",
    )


def _output(work: Path, name: str) -> OutputStatus:
    path = work / (name if name == "masks" else f"{name}.h5")
    manifest = Manifest.read(path.with_suffix(".json"))
    if name == "masks":
        images = len(written_masks(path))
    elif store_exists(path):
        with ArrayReader(path) as reader:
            images = len(reader)
    else:
        images = 0
    if manifest is None:
        return OutputStatus(name, images, 0, 0, False, "", "")
    total, failed = int(manifest.dataset.get("images", 0)), manifest.counts.get("failed", 0)
    return OutputStatus(name, images, total, failed, manifest.complete, manifest.options_digest, manifest.updated)


def _next(outputs: list[OutputStatus], reports: list[Report]) -> str:
    for index, output in enumerate(outputs):
        passed_over = not output.total and any(later.total for later in outputs[index + 1 :])  # not every recipe needs all
        if not output.complete and not passed_over:
            return OUTPUTS[output.name]
    return "ssr show" if any(report.what == "masks" for report in reports) else "ssr eval"
