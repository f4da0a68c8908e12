"""`ssr predict`: writes label maps of a split, or of any folder of images, with the model that `ssr train` wrote."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from pipelines.datasets.base import Dataset
from pipelines.datasets.folder import load_photos
from pipelines.datasets.image import load_image
from pipelines.datasets.image_files import listed
from pipelines.datasets.splits import split_file
from pipelines.encoders.clip import ClipEncoder
from pipelines.encoders.weights import build_clip, resolve_clip
from pipelines.errors import UsageError
from pipelines.execution.batches import batches_by
from pipelines.execution.devices import precision_name, resolve_batch_size, resolve_device, resolve_dtype
from pipelines.execution.fitting import fitting
from pipelines.execution.label_map_workers import LabelMapWorkers, MaskJob
from pipelines.execution.pool import resolve_workers
from pipelines.execution.progress import Progress, Silent
from pipelines.method.boundary import boundary_note, boundary_of, label_map_values
from pipelines.method.label_maps import make_label_map
from pipelines.method.onnx_model import onnx_predictor
from pipelines.method.photo import shapes, too_large
from pipelines.method.predictor import MakesLogits, Predictor
from pipelines.mmsegmentation.retrained import FORMAT as RETRAINED
from pipelines.mmsegmentation.retrained import Retrained, RetrainedPredictor, read_retrained
from pipelines.models.onnx_file import SUFFIX as ONNX
from pipelines.models.onnx_file import read_onnx
from pipelines.models.segmenter import UPPER_BOUND, read_segmenter
from pipelines.options.train import PredictOptions
from pipelines.stores.array_store import store_exists
from pipelines.stores.checkpoint import note_of
from pipelines.stores.files import file_sha256
from pipelines.stores.image_arrays import photo_attributes
from pipelines.stores.manifest import Manifest, digest
from pipelines.workdir.commands import command_for
from pipelines.workdir.counts import Counts
from pipelines.workdir.photos import seen
from pipelines.workdir.workspace import Workspace, folder_name, oriented

STAGE = "predict"


@dataclass(frozen=True)
class Trained:
    """An opened model file.

    Attributes:
        classes: Foreground classes.
        supervision: ``pseudo``, ``corrected`` or ``masks``.
        settings: Everything else that changes its label maps.
        predictor: Loads the model and returns its predictor.
    """

    classes: tuple[str, ...]
    supervision: str
    settings: dict[str, Any]
    predictor: Callable[[], MakesLogits]


def open_trained(workspace: Workspace, path: Path, options: PredictOptions, device: torch.device) -> Trained:
    """Open a model of `ssr train`, its ONNX file, or a network of `ssr retrain`.

    Raises:
        UsageError: The file is none of these, is damaged, or belongs to another CLIP.
        SsrError: The file is a network of `ssr retrain`, and mmsegmentation is missing.
    """
    dtype = resolve_dtype(workspace.run.precision, device)
    if path.suffix == ONNX:
        model = read_onnx(path)
        settings = {} if model.largest else {"long_side": options.long_side}
        return Trained(model.classes, model.supervision, settings, lambda: onnx_predictor(model, options))
    if is_retrained(path):
        network = open_retrained(workspace, path)
        return Trained(network.classes, network.supervision, {}, lambda: RetrainedPredictor(network, options, device, dtype))
    weights = resolve_clip(workspace.clip.model, workspace.clip.pretrained)
    segmenter = read_segmenter(path, weights)
    return Trained(
        segmenter.classes,
        segmenter.supervision,
        {"clip": weights.provenance(), "long_side": options.long_side},
        lambda: Predictor(ClipEncoder(build_clip(weights), device, dtype), segmenter, options),
    )


def open_retrained(workspace: Workspace, path: Path) -> Retrained:
    """Open a network of `ssr retrain`; the config of the work directory is run only for the work directory's own network.

    Raises:
        UsageError: The file is damaged, or its network needs a config file that is not there.
        SsrError: mmsegmentation is missing.
    """
    own = path.resolve() in {file.resolve() for file in (workspace.retrained, workspace.work / "retrain/best.safetensors")}
    return read_retrained(path, config_file=workspace.work / "retrain" / "config.py" if own else None)


def is_retrained(path: Path) -> bool:
    """Return whether a model's file is a network of `ssr retrain`.

    Raises:
        UsageError: The file is not from `ssr`.
    """
    return path.suffix != ONNX and note_of(path, "--model").get("format") == RETRAINED


def outputs(workspace: Workspace, options: PredictOptions) -> tuple[Path, ...]:
    """Return the folders that `run` writes."""
    return (output_folder(workspace, options),)


def run(workspace: Workspace, options: PredictOptions, progress: Progress | None = None) -> Counts:
    """Make the label map of every image that has none.

    Args:
        workspace: Names the images and the folder of the label maps.
        options: The model, the images, scales, boundary refinement.
        progress: Receives each image.

    Returns:
        Label maps done, skipped and failed.

    Raises:
        UsageError: There is no usable model, the model has other classes or another CLIP, or the folder was made with other
            options and ``workspace.force`` is off.
        TooManyFailures: There are more bad images than allowed; what was computed is kept.
    """
    progress = progress or Silent()
    device = resolve_device(workspace.run.device)
    path = model_file(workspace, options.model)
    trained = open_trained(workspace, path, options, device)
    if options.images is not None:
        workspace = replace(workspace, photos=load_photos(options.images, trained.classes, workspace.dataset_options.orient))
    _check_classes(path, trained.classes, workspace.dataset)
    folder = output_folder(workspace, options)
    store = folder.with_suffix(".h5")
    place = check_output(workspace, options, folder)
    settings = _settings(workspace, options, path, trained)
    predictor_once = cache(trained.predictor)
    needed = (folder, store) if options.probabilities else (folder,)  # otherwise the store is the lock of the folder
    for words in workspace.dataset.passed_over:
        progress.note(words)
    if trained.supervision == "masks":
        progress.note(f"the model was {UPPER_BOUND}")
    if note := boundary_note(options):
        progress.note(note)
    make, processes = partial(make_label_map, options=options, device=str(device)), boundary_of(options).processes
    with (
        workspace.output(STAGE, folder, settings, progress, others=(store,), prepare=predictor_once, place=place) as output,
        LabelMapWorkers(make, resolve_workers(workspace.run.workers), output.made, processes=processes) as makers,
    ):
        todo = output.todo(lambda sample: output.holds(sample, *needed))
        if todo:
            makers.start()
            predictor = predictor_once()
            photos = output.photos(
                lambda sample: predictor.photo(seen(sample), load_image(sample.image_path, sample.orient)), todo
            )
            batches = batches_by(photos, shapes, resolve_batch_size(workspace.run, device))
            made = fitting(
                lambda batch: list(zip(batch, predictor.logits(batch), strict=True)),
                batches,
                lambda photo: output.made(photo.sample.image_id, too_large(photo)),
            )
            for pairs in made:
                for photo, logits in pairs:  # (C + 1, h, w)
                    sample, maps = photo.sample, logits.half().cpu().numpy()
                    if options.probabilities:
                        probabilities = logits.softmax(0).half().cpu().numpy()  # (C + 1, h, w)
                        output.writer.add(sample.image_id, probabilities, photo_attributes(photo.size, sample.photo))
                    target = folder / f"{sample.image_id}.png"
                    job = MaskJob(sample.image_id, sample.image_path, maps, (), photo.size, target, sample.orient, sample.photo)
                    makers.submit(job)
    return output.counts


def output_folder(workspace: Workspace, options: PredictOptions) -> Path:
    """Return the folder of the label maps: ``--output``, or one in the work directory named after the images.

    Raises:
        UsageError: The name leaves no room for ``NAME.json`` and ``NAME.h5`` beside it.
    """
    name = options.images.resolve().name if options.images else workspace.dataset.split
    if options.output is None and is_retrained(model_file(workspace, options.model)):
        return folder_of(options, workspace.retrained.with_suffix(""), name)
    return folder_of(options, workspace.predictions, name)


def folder_of(options: PredictOptions, parent: Path, name: str) -> Path:
    """Return the folder of ``--output``, or else one of the given name in the work directory.

    Raises:
        UsageError: The name leaves no room for ``NAME.json`` and ``NAME.h5`` beside it.
    """
    if options.output is None:
        return parent / folder_name(name)
    if options.output.name in {"", ".."} or options.output.suffix:
        raise UsageError(f"expected a folder name without a dot, found {str(options.output)!r}", "--output")
    return options.output


def model_file(workspace: Workspace, model: Path) -> Path:
    """Return the file of ``--model``; ``auto`` and ``retrained`` are the work directory's own, unless a file has that name.

    Raises:
        UsageError: The work directory has no such model.
    """
    own = {"auto": (workspace.model, "ssr train"), "retrained": (workspace.retrained, "ssr retrain")}
    if model.name not in own or model.is_file():
        return model
    path, command = own[model.name]
    if not path.is_file():
        raise UsageError(f"no model at {path}", f"run `{command_for(workspace.work, command)}` first, or give --model FILE")
    return path


def _check_classes(path: Path, classes: tuple[str, ...], dataset: Dataset) -> None:
    names = dataset.classes.names
    if classes != names:
        longest = range(max(len(classes), len(names)))
        first = next(index for index in longest if classes[index : index + 1] != names[index : index + 1])
        theirs, ours = ((found[first] if first < len(found) else "none") for found in (classes, names))
        raise UsageError(
            f"{path} was trained for {len(classes)} classes, not for the dataset's {len(names)}: "
            f"class {first + 1} is {theirs} there, {ours} here",
            "--model, or --classes",
        )


def check_output(workspace: Workspace, options: PredictOptions, output: Path) -> dict[str, str]:
    """Refuse a folder that is foreign or holds label maps of other images; return the keys that identify the images' folder.

    In the work directory, the result also contains the folder or split of the images, so that `ssr status` finds them.
    """
    if output.exists() and not output.is_dir():
        raise UsageError(f"{output} is not a folder", "--output FOLDER")
    place = digest(str(workspace.dataset.root.resolve()))
    manifest = Manifest.read(output.with_suffix(".json"))
    filled = any(True for _ in listed(output)) or store_exists(output.with_suffix(".h5"))
    own = options.output is None and manifest is None  # in the work directory, but without a manifest
    if (filled if manifest is None else manifest.stage != STAGE) and not (own and workspace.force):  # --force would remove it
        hint = "--force starts it over" if own else "--output FOLDER, a new one"
        raise UsageError(f"{output} belongs to something else than `ssr predict`", hint)
    if manifest is not None and not workspace.force and (manifest.dataset or {}).get("place", place) != place:
        raise UsageError(f"{output} holds label maps of images of another folder", "--output FOLDER, or --force starts it over")
    source = options.images or split_file(workspace.dataset_options.split)
    found = workspace.dataset_options.split if source is None else str(source.resolve())
    return {"place": place} | ({"from": found} if options.output is None else {})


def _settings(workspace: Workspace, options: PredictOptions, path: Path, trained: Trained) -> dict[str, Any]:
    """Return all settings that change a label map."""
    return {
        **label_map_values(options, "scales", "flip"),
        "model": file_sha256(path),
        "supervision": trained.supervision,
        **trained.settings,
        "precision": precision_name(workspace.run),
        "classes": list(trained.classes),
        **oriented(workspace),
    }
