"""`ssr status`: reports what is done in a work directory, and the next command."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from pipelines.config import build_options
from pipelines.datasets import Dataset, load_dataset
from pipelines.datasets.folder import load_photos, may_have_masks
from pipelines.datasets.unlabelled import lacks_labels
from pipelines.errors import SsrError
from pipelines.evaluation.report import Report
from pipelines.options.sources import DatasetOptions
from pipelines.stores.array_store import ArrayReader, store_exists
from pipelines.stores.manifest import Manifest, read_manifest
from pipelines.stores.mask_store import photo_of_mask, written_masks
from pipelines.workdir.commands import command_for
from pipelines.workdir.made_from import older_inputs, runnable
from pipelines.workdir.memory import recall
from pipelines.workdir.output import is_changed
from pipelines.workdir.record import begun_at
from pipelines.workdir.scores import scores
from pipelines.workdir.trained_photos import replaced_photos

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
"""Outputs that not every recipe needs; they are listed once they were begun."""
FEW_PHOTOS = 50
"""Number of images below which people look their masks through instead of training a model on them."""
_FOLDERS = {"cmpa": "align", "model": "train", "retrained": "retrain"}
"""Folder of each training."""


@dataclass(frozen=True)
class OutputStatus:
    """One output of a work directory.

    Attributes:
        name: ``superpixels``, ``cmpa``, ``cams``, ``refined``, ``masks``, ``model``, ``retrained`` or, for label maps of
            a model, ``predictions/NAME`` and ``retrained/NAME``.
        images: Images of the present work list that it holds; for ``cmpa``, those it is trained on; for ``model`` and
            ``retrained``, the number of steps trained.
        total: Images of the work list in its last run; 0 if it was never begun. For trained ``cmpa``, those with a class, so
            that images without one do not look missing. For ``model`` and ``retrained``, the steps of the whole training.
        others: Images that it holds in addition, such as the rest of an earlier, larger split.
        failed: Bad images of the last run.
        complete: Whether the last run reached its end.
        options_digest: Digest of the options that made it.
        updated: UTC time of the last change.
        outdated: Images whose labels or files changed since, or that are new in the work list; see `with_outdated`. For a
            training, only those whose image was replaced.
        made_by: The command that makes it.
        older_inputs: Inputs that were made again with other options after it.
    """

    name: str
    images: int
    total: int
    others: int
    failed: int
    complete: bool
    options_digest: str
    updated: str
    outdated: tuple[str, ...] = ()
    made_by: str = ""
    older_inputs: tuple[str, ...] = ()

    @property
    def trained(self) -> bool:
        """Whether it is trained on all images together."""
        return self.name in TRAINED

    @property
    def state(self) -> str:
        """``done``, ``broken off`` or ``not begun``, with further facts in words."""
        words = ["done" if self.complete else "broken off" if self.total else "not begun"]
        words += [f"{self.failed} bad"] if self.failed else []
        words += [f"{self.others} of another split"] if self.others else []
        words += [f"{len(self.outdated)} out of date"] if self.outdated else []
        words += [f"of older {' and '.join(self.older_inputs)}"] if self.older_inputs else []
        return ", ".join(words)


@dataclass(frozen=True)
class WorkStatus:
    """The state of a work directory.

    Attributes:
        dataset: Kind, root and split, as recorded.
        recipe: The recipe in use.
        outputs: Outputs in the order of the stages. ``cmpa``, ``model``, ``retrained`` and label maps of these, which not every
            recipe needs, are listed only once they were begun.
        reports: Reports of the evaluations so far, without those of outputs that were made again since.
        next_command: The next command.
    """

    dataset: str
    recipe: str
    outputs: list[OutputStatus]
    reports: list[Report]
    next_command: str


def status(work: Path) -> WorkStatus:
    """Read the status of a work directory; nothing is changed, and no image or mask is opened.

    Raises:
        SsrError: A manifest or store is damaged.
    """
    memory = recall(work)
    dataset = memory.get("dataset") or {}
    trained = {"cmpa": _heads(work), "model": _model(work, "model"), "retrained": _model(work, "retrained")}
    looked_at = [trained[name] if name in TRAINED else _output(work, name) for name in OUTPUTS]
    outputs = [
        replace(output, made_by=OUTPUTS[output.name], older_inputs=older_inputs(work, output.name))
        for output in looked_at
        if output is not None
    ]
    found = list(scores(work))
    reports = [score.report for score in found if score.current]
    old = any(not score.current and score.report.what == "masks" for score in found)
    return WorkStatus(
        dataset=f"{dataset.get('kind', '?')}, {dataset.get('split', '?')}, {dataset.get('root', '?')}",
        recipe=str(memory.get("recipe") or "?"),
        outputs=[*outputs, *_predictions(work)],
        reports=reports,
        next_command=command_for(work, _labels_first(work, dataset) or _next(work, outputs, reports, old)),
    )


def with_outdated(work: Path, found: WorkStatus) -> WorkStatus:
    """Add to each output the images that the next run would make anew, because labels or image changed or the image is new.

    The label files and each image's time are read. The next command is that of the first stage with such images. Trainings are
    not made anew unless requested; they get the images that were replaced.

    Args:
        work: The work directory.
        found: Its status.
    """
    remembered = recall(work).get("dataset")
    if not remembered:
        return found
    options = cast("DatasetOptions", build_options("dataset", remembered))
    try:
        dataset = load_dataset(options)
    except SsrError:  # the next stage reports it
        return found
    outputs: list[OutputStatus] = []
    ids, stale = [sample.image_id for sample in dataset.samples], set[str]()
    for output in found.outputs:
        if output.trained or "/" in output.name:
            changed = _replaced(work, output.name, dataset) if output.trained else _repredicted(work, output.name, options)
            outputs.append(replace(output, outdated=tuple(changed)))
            continue
        if output.name in {"superpixels", "cams", "refined"} and output.complete:
            stale |= set(_outdated(work / f"{output.name}.h5", dataset, output.name != "superpixels"))
        shown = tuple(image_id for image_id in ids if image_id in stale)
        relevant = output.name in {"superpixels", "cams", "refined", "masks"} and output.total
        outputs.append(replace(output, outdated=shown) if relevant else output)
    first = next((output for output in outputs if output.outdated and not output.trained), None)
    command = found.next_command
    if first is not None:
        command = command_for(work, runnable(work, first.made_by + _checkpoint(work, first.name, found.outputs)))
    return replace(found, outputs=outputs, next_command=command)


def _outdated(store: Path, dataset: Dataset, by_labels: bool) -> Iterator[str]:
    manifest = read_manifest(store)
    if manifest is None or not store_exists(store):
        return
    begun = begun_at(manifest)
    failed = manifest.counts.get("failed", 0)
    with ArrayReader(store) as reader:
        for sample in dataset.samples:
            if sample.image_id not in reader:
                if not failed:
                    yield sample.image_id
            else:
                attributes = reader.attributes(sample.image_id)
                other_labels = by_labels and attributes.get("labels") != list(sample.labels)
                if other_labels or is_changed(sample, begun, (attributes.get("photo"),)):
                    yield sample.image_id


def _replaced(work: Path, name: str, dataset: Dataset) -> tuple[str, ...]:
    """Return the images of a training that were replaced since."""
    manifest = Manifest.read(work / f"{name}.json")
    return replaced_photos(work / _FOLDERS[name], dataset.samples, begun_at(manifest)) if manifest else ()


def _predictions(work: Path) -> Iterator[OutputStatus]:
    """Yield the status of label maps of models in the work directory."""
    for parent, option in (("predictions", ""), ("retrained", " --model retrained")):
        for path in sorted((work / parent).glob("*.json")):
            manifest = Manifest.read(path)
            if manifest is None or manifest.stage != "predict":
                continue
            source = str(manifest.dataset.get("from", manifest.dataset.get("split", "")))
            flag = "images" if _is_photos(source) else "split"
            heads = (manifest.settings.get("cams") or {}).get("ckpt")
            free = f" --model {'heads' if heads else 'tags'}"
            model = free if manifest.settings.get("supervision") == "tags" else option
            made_by = f"ssr predict --{flag} {shlex.quote(source)}{model}"
            yield replace(_output(work, f"{parent}/{path.stem}"), made_by=made_by)


def _is_photos(source: str) -> bool:
    """Return whether label maps were made of a folder of images: its path is absolute, unlike the name of a split."""
    return Path(source).is_absolute() and Path(source).is_dir()


def _repredicted(work: Path, name: str, options: DatasetOptions) -> Iterator[str]:
    """Yield the images that were replaced since their label maps were made."""
    manifest = Manifest.read(work / f"{name}.json")
    source = manifest.dataset.get("from") if manifest else None
    if manifest is None or not isinstance(source, str):
        return
    try:
        if _is_photos(source):
            dataset = load_photos(Path(source), ("any",))
        else:
            dataset = load_dataset(options.model_copy(update={"split": source}))
    except SsrError:  # `ssr predict` reports it
        return
    for sample in dataset.samples:
        if is_changed(sample, begun_at(manifest), map(photo_of_mask, [work / name / f"{sample.image_id}.png"])):
            yield sample.image_id


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
    folder = name == "masks" or "/" in name
    path = work / (name if folder else f"{name}.h5")
    manifest = read_manifest(path)
    if folder:
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
        raise SsrError(
            f"{path.with_suffix('.json')} is damaged", f"remove it and run `{OUTPUTS.get(name, 'ssr predict')} --force`"
        ) from None
    # an output keeps the images of earlier work lists; a complete run has counted those of its own list
    images = min(held, counts.get("done", 0) + counts.get("skipped", 0) if counts else total)
    others, failed = max(0, held - total), counts.get("failed", 0)
    return OutputStatus(name, images, total, others, failed, manifest.complete, manifest.options_digest, manifest.updated)


def _labels_first(work: Path, dataset: Mapping[str, Any]) -> str | None:
    """Return the next command for images without labels: every other stage needs those of `ssr tag`."""
    if not dataset or not lacks_labels(cast("DatasetOptions", build_options("dataset", dataset))):
        return None
    tags = work / "tags.csv"
    return f"ssr masks --labels {shlex.quote(str(tags))}" if tags.is_file() else "ssr tag"


def _next(work: Path, outputs: list[OutputStatus], reports: list[Report], old_scores: bool) -> str:
    for index, output in enumerate(outputs):
        passed_over = not output.total and any(later.total for later in outputs[index + 1 :])  # not every recipe needs all
        if (not output.complete or output.older_inputs) and not passed_over:
            return runnable(work, OUTPUTS[output.name] + _checkpoint(work, output.name, outputs))
    return "ssr eval" if old_scores else _after_masks(work, outputs, reports)


def _after_masks(work: Path, outputs: list[OutputStatus], reports: list[Report]) -> str:
    """Return the first command that was not run of those after the last one that was; `ssr show` once all were."""
    options = cast("DatasetOptions", build_options("dataset", recall(work).get("dataset") or {}))
    scored = {report.what for report in reports}
    page = (work / "report.html").is_file()
    to_see = [
        ("ssr show", page or (work / "show" / "index.html").is_file()),
        ("ssr review", (work / "review" / "review.csv").is_file()),
    ]
    to_score = [
        ("ssr eval", "masks" in scored),
        ("ssr report", page),
        ("ssr ablation", (work / "ablation.json").is_file()),
        ("ssr eval ablation", (work / "ablation.json").is_file() and "cams" in scored),
    ]
    to_train = [
        (f"{OUTPUTS['model']}{_checkpoint(work, 'model', outputs)}", any(o.name == "model" for o in outputs)),
        ("ssr predict", any((work / "predictions").glob("*.json"))),
    ]
    few = next(output.total for output in outputs if output.name == "masks") < FEW_PHOTOS
    to_look_at = to_see if few else [to_see[0], *to_train]
    commands = [*to_score, *to_train] if may_have_masks(options.kind, options.root) else to_look_at
    last = max((index for index, (_, run) in enumerate(commands) if run), default=-1)
    return commands[last + 1][0] if last + 1 < len(commands) else "ssr show"


def _checkpoint(work: Path, name: str, outputs: list[OutputStatus]) -> str:
    """Return the flag for existing heads, which CAMs and training use unless they were begun without them."""
    if name not in {"cams", "model"}:
        return ""
    begun = Manifest.read(work / f"{name}.json")
    cams = (begun.settings.get("cams") or {} if name == "model" else begun.settings) if begun else None
    trained = any(output.name == "cmpa" and output.complete for output in outputs)
    return " --ckpt auto" if trained and (cams is None or cams.get("ckpt")) else ""
