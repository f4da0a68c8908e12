"""`ssr ablation`: the same CAMs, refined in rows that each add one component.

One pass of the encoders serves all rows. The rows are made without ground truth; only `ssr eval ablation` calls `score`.
"""

from __future__ import annotations

import dataclasses
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.errors import SsrError
from pipelines.evaluation.report import Report, read_report
from pipelines.execution.progress import Progress
from pipelines.method.boundary import boundary_name
from pipelines.method.column_masks import COLUMN_MASKS
from pipelines.method.parts_in_use import affinity_of
from pipelines.options.stages import CamsOptions, EvalOptions, RefineOptions
from pipelines.stages import cams, evaluate
from pipelines.stages.refine import stage as refine
from pipelines.stores.files import read_json, write_json
from pipelines.stores.manifest import Manifest
from pipelines.workdir.counts import Counts
from pipelines.workdir.workspace import Workspace

LIST = "ablation.json"
"""File in the work directory that lists the rows in order."""

INITIAL = "initial CAM"
ALIGNED = "+ alignment (CMPA)"
MODELS = {"predictions": "segmentation model", "retrained": "retrained network"}
"""Maps the folder of a model's label maps to its title."""
PLAIN = "plain"
"""Folder in ``WORK/ablation`` of plain CLIP's CAMs, made if those of the work directory come from alignment heads."""


@dataclass(frozen=True)
class Row:
    """One row of the ablation: a set of options.

    Attributes:
        name: Folder in ``WORK/ablation``.
        title: The component that it adds to the row before.
        options: All options of the row.
    """

    name: str
    title: str
    options: RefineOptions


def rows(options: RefineOptions) -> list[Row]:
    """Return the rows of the ablation: the affinity alone, then one more component per row, with the boundary refinement last.

    Args:
        options: The whole recipe.

    Returns:
        Rows in order. Components that the options do not have are left out, except the boundary refinement, which is ``auto``
        where the options have none.
    """
    off: dict[str, Any] = {"affinity_filter": "none", "box_mask": False, "superpixel_mask": "none"}
    off |= {"boundary": "none", "min_confidence": 0.0}
    result: list[Row] = []
    current = options.model_copy(update=off)
    steps: list[tuple[str, str, dict[str, Any]]] = []
    attention = affinity_of(options).needs(options) & {"clip_attention", "dino_attention"}
    without_dino = current.model_copy(update={"dino_weight": 0.0})
    if "clip_attention" in attention and "dino_attention" not in affinity_of(options).needs(without_dino):
        current = without_dino
        result.append(Row("clip", "+ CLIP affinity", current))
        attention -= {"clip_attention"}
    if attention == {"dino_attention"}:
        steps.append(("dino", "+ DINO affinity", {"dino_weight": options.dino_weight}))
    elif attention or not result:  # of a plugin: it reads no attention, or both kinds whatever the weight is
        steps.append(("affinity", f"+ affinity {options.affinity}", {}))
    if options.affinity_filter != "none":
        steps.append(("filter", f"+ {options.affinity_filter.upper()}", {"affinity_filter": options.affinity_filter}))
    if options.box_mask:
        steps.append(("box", "+ box mask", {"box_mask": True}))
    if options.superpixel_mask != "none":
        shipped = options.superpixel_mask in COLUMN_MASKS.shipped
        title = "+ superpixels (SGC)" if shipped else f"+ {options.superpixel_mask}"
        steps.append(("superpixels", title, {"superpixel_mask": options.superpixel_mask}))
    boundary = boundary_name(options if options.boundary != "none" else options.model_copy(update={"boundary": "auto"}))
    last = {"boundary": boundary, "min_confidence": options.min_confidence}
    steps.append(("boundary", f"+ {boundary.upper()}", last))
    for name, title, update in steps:
        current = current.model_copy(update=update)
        result.append(Row(name, title, current))
    return result


def run(workspace: Workspace, options: RefineOptions, progress: Progress | None = None) -> Counts:
    """Make the masks of every row into ``WORK/ablation/<name>``.

    Args:
        workspace: Names the images, CAMs and superpixels.
        options: The whole recipe.
        progress: Receives one step per mask.

    Returns:
        Masks of all rows together: done, skipped and failed.

    Raises:
        UsageError: The rows were made with other options, and ``workspace.force`` is off.
        SsrError: There are no CAMs, or no superpixels although a row needs them.
    """
    ablation_rows = rows(options)
    plain = _make_plain_cams(workspace, progress)
    counts = refine.run_targets(
        workspace, [refine.Target(row.options, _folder(workspace.work, row.name)) for row in ablation_rows], progress
    )
    listed = [{"name": row.name, "title": row.title} for row in ablation_rows]
    listed = [{"name": PLAIN, "title": INITIAL}, *listed] if plain else listed
    write_json(workspace.work / LIST, listed)
    for folder in (workspace.work / "ablation").iterdir():  # removes rows of an earlier recipe
        if folder.is_dir() and folder.name not in {entry["name"] for entry in listed}:
            shutil.rmtree(folder)
    return Counts(sum(c.done for c in counts), sum(c.skipped for c in counts), sum(c.failed for c in counts))


def _make_plain_cams(workspace: Workspace, progress: Progress | None) -> bool:
    """Make plain CLIP's CAMs if the work directory's CAMs are made through alignment heads; return whether they were made."""
    manifest = Manifest.read(workspace.cams.with_suffix(".json"))
    if manifest is None or manifest.settings.get("ckpt") is None:
        return False
    made_with = {key: value for key, value in manifest.settings.items() if key in CamsOptions.model_fields}
    cams.run(_plain_workspace(workspace), CamsOptions.model_validate(made_with | {"ckpt": None}), progress)
    return True


def _plain_workspace(workspace: Workspace) -> Workspace:
    work = workspace.work
    return dataclasses.replace(workspace, work=_folder(work, PLAIN), superpixels_work=work, remembers=False)


def score(
    workspace: Workspace, options: EvalOptions, background_power: float, progress: Progress | None = None
) -> list[tuple[str, Report]]:
    """Score the initial CAM and every row. This opens ground truth.

    Args:
        workspace: A work directory whose ablation is made.
        options: Options of the scores; ``oracle`` is ignored.
        background_power: Exponent p of the background score for the initial CAM.
        progress: Receives one step per image.

    Returns:
        Title and report of each row, first to last.

    Raises:
        SsrError: There is no ablation.
    """
    plain = options.model_copy(update={"oracle": False})
    names = _listed(workspace.work)
    scores = [(_title_of_cams(names), evaluate.run(workspace, "cams", plain, background_power, progress)[0].report)]
    for name, title in names:
        if name == PLAIN:
            report = evaluate.run(_plain_workspace(workspace), "cams", plain, background_power, progress)[0].report
            scores.insert(0, (title, report))
            continue
        row_workspace = dataclasses.replace(workspace, work=_folder(workspace.work, name))
        scores.append((title, evaluate.run(row_workspace, "masks", plain, background_power, progress)[0].report))
    for folder in MODELS:
        predicted = Manifest.read(workspace.work / folder / f"{workspace.dataset.split}.json")
        if predicted is not None and predicted.complete and predicted.dataset.get("digest") == workspace.dataset.digest():
            report = evaluate.run(workspace, folder, plain, background_power, progress)[0].report
            scores.append((_title_of_model(folder, report), report))
    return scores + _of_other_splits(workspace.work, scores[0][1])


def scored(work: Path) -> list[tuple[str, Report]]:
    """Return the stored scores of the ablation; empty unless all rows have been scored."""
    if not (work / LIST).is_file():
        return []
    listed = _listed(work)
    folders = [(INITIAL, _folder(work, PLAIN) / "eval" / "cams")] if _title_of_cams(listed) == ALIGNED else []
    folders.append((_title_of_cams(listed), work / "eval" / "cams"))
    folders += [(title, _folder(work, name) / "eval" / "masks") for name, title in listed if name != PLAIN]
    reports = [(title, folder / "report.json") for title, folder in folders]
    if not all(path.is_file() for _, path in reports):
        return []
    scores = [(title, read_report(path)) for title, path in reports]
    for folder in MODELS:
        path = work / "eval" / f"{folder}-{scores[0][1].split}" / "report.json"
        if path.is_file():
            report = read_report(path)
            scores.append((_title_of_model(folder, report), report))
    return scores + _of_other_splits(work, scores[0][1])


def _of_other_splits(work: Path, first: Report) -> list[tuple[str, Report]]:
    """Return the stored scores of predictions for other splits."""
    scores: list[tuple[str, Report]] = []
    for folder in MODELS:
        splits = sorted(path.name for path in (work / folder).glob("*") if path.is_dir())
        paths = [work / "eval" / f"{folder}-{split}" / "report.json" for split in splits]
        reports = [read_report(path) for path in paths if path.is_file()]
        scores += [(f"{_title_of_model(folder, r)}, split {r.split}", r) for r in reports if r.split != first.split]
    return scores


def _title_of_model(folder: str, report: Report) -> str:
    return f"{MODELS[folder]} (ground-truth masks)" if "supervision" in report.rules else MODELS[folder]


def _title_of_cams(listed: list[tuple[str, str]]) -> str:
    """Return the title of the row of the work directory's CAMs."""
    return ALIGNED if any(name == PLAIN for name, _ in listed) else INITIAL


def _folder(work: Path, name: str) -> Path:
    return work / "ablation" / name


def _listed(work: Path) -> list[tuple[str, str]]:
    path = work / LIST
    if not path.is_file():
        raise SsrError(f"no ablation in {work}", "run `ssr ablation` first")
    content = read_json(path)
    try:
        if not isinstance(content, list):
            raise TypeError
        listed = [(str(entry["name"]), str(entry["title"])) for entry in content]
        if not all(re.fullmatch(r"[a-z]{1,40}", name) for name, _ in listed):  # names are folders
            raise TypeError
        return listed
    except (TypeError, KeyError) as error:
        raise SsrError(f"{path} is damaged", "run `ssr ablation` again") from error
