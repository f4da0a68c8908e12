"""`ssr status`: what is done in a work directory, and what comes next."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipelines.errors import SsrError
from pipelines.evaluation.report import Report, read_report
from pipelines.stores.array_store import ArrayReader, store_exists
from pipelines.stores.manifest import Manifest, read_manifest
from pipelines.stores.mask_store import written_masks
from pipelines.workdir.commands import command_for
from pipelines.workdir.memory import recall

OUTPUTS = {
    # output: the command that makes it
    "superpixels": "ssr superpixels",
    "cmpa": "ssr align",
    "cams": "ssr cams",
    "refined": "ssr refine",
    "masks": "ssr refine",
    "model": "ssr train",
    "retrained": "ssr retrain",
}
TRAINED = ("cmpa", "model", "retrained")
"""Outputs that not everyone makes: listed once they were begun."""


@dataclass(frozen=True)
class OutputStatus:
    """One output of a work directory.

    Attributes:
        name: ``superpixels``, ``cmpa``, ``cams``, ``refined``, ``masks``, ``model`` or ``retrained``.
        images: Images of the present work list that it holds; ``cmpa``: that it has learned from; ``model``, ``retrained``:
            steps trained.
        total: Images of the work list when it was last worked on; 0 if it was never begun. Trained ``cmpa``: those with a
            class, so that photos without one do not look forgotten. ``model``, ``retrained``: steps of the whole training.
        others: Images that it holds beyond those, such as the rest of a larger split before.
        failed: Bad images of the last run.
        complete: The last run reached its end.
        options_digest: Of the options that made it.
        updated: UTC time of the last change.
    """

    name: str
    images: int
    total: int
    others: int
    failed: int
    complete: bool
    options_digest: str
    updated: str

    @property
    def state(self) -> str:
        """``done``, ``broken off`` or ``not begun``, and what else must be known, in words."""
        words = ["done" if self.complete else "broken off" if self.total else "not begun"]
        words += [f"{self.failed} bad"] if self.failed else []
        words += [f"{self.others} of another split"] if self.others else []
        return ", ".join(words)


@dataclass(frozen=True)
class WorkStatus:
    """A work directory at a glance.

    Attributes:
        dataset: Kind, root and split, as remembered.
        recipe: Recipe in force.
        outputs: In the order of the stages; ``cmpa``, ``model`` and ``retrained``, which not everyone trains, only once
            they were begun.
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
    trained = {"cmpa": _heads(work), "model": _model(work, "model"), "retrained": _model(work, "retrained")}
    looked_at = [trained[name] if name in TRAINED else _output(work, name) for name in OUTPUTS]
    outputs = [output for output in looked_at if output is not None]
    # read here instead of by `evaluate.reports_in`, to avoid importing matplotlib (0.5 s) in bare `ssr`
    reports = [read_report(path) for path in sorted((work / "eval").glob("*/report.json"))]
    return WorkStatus(
        dataset=f"{dataset.get('kind', '?')}, {dataset.get('split', '?')}, {dataset.get('root', '?')}",
        recipe=str(memory.get("recipe") or "?"),
        outputs=outputs,
        reports=reports,
        next_command=command_for(work, _next(work, outputs, reports)),
    )


def _heads(work: Path) -> OutputStatus | None:
    manifest = Manifest.read(work / "cmpa.json")
    if manifest is None:
        return None
    patches = Manifest.read(work / "align" / "tokens.json")
    try:
        photos, total = int(manifest.counts.get("photos", 0)), int(manifest.dataset.get("images", 0))
        failed = int(patches.counts.get("failed", 0)) if patches else 0
    except (ArithmeticError, AttributeError, TypeError, ValueError):
        raise SsrError(f"{work / 'cmpa.json'} is damaged", f"remove it and run `{OUTPUTS['cmpa']} --force`") from None
    complete = manifest.complete and (work / "cmpa.safetensors").is_file()
    total = photos + failed if complete else total
    return OutputStatus("cmpa", photos, total, 0, failed, complete, manifest.options_digest, manifest.updated)


def _model(work: Path, name: str) -> OutputStatus | None:
    manifest = Manifest.read(work / f"{name}.json")
    if manifest is None:
        return None
    try:
        steps, total = int(manifest.counts.get("iterations", 0)), int(manifest.settings["iterations"])
        failed = int(manifest.counts.get("failed", 0))
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError):
        raise SsrError(f"{work / name}.json is damaged", f"remove it and run `{OUTPUTS[name]} --force`") from None
    complete = manifest.complete and (work / f"{name}.safetensors").is_file()
    return OutputStatus(name, steps, total, 0, failed, complete, manifest.options_digest, manifest.updated)


def _output(work: Path, name: str) -> OutputStatus:
    path = work / (name if name == "masks" else f"{name}.h5")
    manifest = read_manifest(path)
    if name == "masks":
        held = len(written_masks(path))
    elif store_exists(path):
        with ArrayReader(path) as reader:
            held = len(reader)
    else:
        held = 0
    if manifest is None:
        return OutputStatus(name, held, 0, 0, 0, False, "", "")
    try:
        total, counts = int(manifest.dataset.get("images", 0)), {key: int(value) for key, value in manifest.counts.items()}
    except (ArithmeticError, AttributeError, TypeError, ValueError):
        raise SsrError(f"{path.with_suffix('.json')} is damaged", f"remove it and run `{OUTPUTS[name]} --force`") from None
    # an output keeps the images of earlier work lists; a run that reached its end has counted those of its own
    images = min(held, counts.get("done", 0) + counts.get("skipped", 0) if counts else total)
    others, failed = max(0, held - total), counts.get("failed", 0)
    return OutputStatus(name, images, total, others, failed, manifest.complete, manifest.options_digest, manifest.updated)


def _next(work: Path, outputs: list[OutputStatus], reports: list[Report]) -> str:
    for index, output in enumerate(outputs):
        passed_over = not output.total and any(later.total for later in outputs[index + 1 :])  # not every recipe needs all
        if not output.complete and not passed_over:
            return OUTPUTS[output.name] + _checkpoint(work, output.name, outputs)
    return "ssr show" if any(report.what == "masks" for report in reports) else "ssr eval"


def _checkpoint(work: Path, name: str, outputs: list[OutputStatus]) -> str:
    """Heads that are there are for CAMs and training, but not for those that were begun without them."""
    if name not in {"cams", "model"}:
        return ""
    begun = Manifest.read(work / f"{name}.json")
    cams = (begun.settings.get("cams") or {} if name == "model" else begun.settings) if begun else None
    trained = any(output.name == "cmpa" and output.complete for output in outputs)
    return " --ckpt auto" if trained and (cams is None or cams.get("ckpt")) else ""
