"""`ssr retrain`: trains a standard segmentation network on mmsegmentation, from the pseudo-masks of `ssr refine`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pipelines.datasets import Dataset, load_dataset
from pipelines.datasets.classes import palette
from pipelines.encoders.model_config import TimmModel, dino_architecture
from pipelines.errors import UsageError
from pipelines.execution.devices import resolve_device
from pipelines.execution.pool import resolve_workers
from pipelines.execution.progress import Progress
from pipelines.mmsegmentation.backbone import MIT
from pipelines.mmsegmentation.config import config, config_text
from pipelines.mmsegmentation.imports import import_mmsegmentation, mmsegmentation_versions
from pipelines.mmsegmentation.launch import launched
from pipelines.mmsegmentation.retrained import Design, write_retrained
from pipelines.models.segmenter import UPPER_BOUND
from pipelines.options.retrain import NETWORKS, RetrainOptions
from pipelines.stages.retrain.data import LabelMaps, check_pseudo, checked, ground_truth, pseudo_masks, split_files
from pipelines.stores.files import atomic_path, file_sha256, files_sha256
from pipelines.workdir.corrected import corrected_masks
from pipelines.workdir.counts import Counts
from pipelines.workdir.training_run import TrainingRun
from pipelines.workdir.validated_curves import ValidatedCurves
from pipelines.workdir.workspace import Workspace

if TYPE_CHECKING:
    from mmengine.runner import Runner

STAGE = "retrain"
CONFIG = "config.py"
FILES = ("state.pth", "best.safetensors", "curves.jsonl", "curves.png")
LABELS = {"segmentation": "cross-entropy", "auxiliary": "auxiliary head"}
"""Losses in the figure of the curves."""
AUTO_BACKBONE = {"deeplabv3plus": "resnet50", "segformer": "mit_b0", "upernet": "dino"}
NOT_SETTINGS = {"schedule", "corrected", "val_split", "validate_every", "save_every", "resume", "launcher", "write_only"} | {
    "masks",
    "model",
    "backbone",
    "backbone_weights",
}
"""Options that change nothing in the network, or are recorded by what they refer to."""


def run(workspace: Workspace, options: RetrainOptions, progress: Progress | None = None) -> Counts:
    """Write ``WORK/retrain/config.py``, and train from the last saved state until ``WORK/retrained.safetensors`` is complete.

    Args:
        workspace: Names the images, classes and pseudo-masks.
        options: Network, labels, schedule.
        progress: Receives each step.

    Returns:
        Steps done and skipped, and images failed; with ``write_only`` no steps.

    Raises:
        UsageError: Options do not fit, or differ from those of an earlier training while ``workspace.force`` is off.
        SsrError: mmsegmentation is missing, or there are no label maps to train on.
        TooManyFailures: There are more bad images or masks than allowed.
    """
    mmsegmentation_versions()
    _check(workspace, options)
    if workspace.dataset_options.orient:
        raise UsageError(
            "mmsegmentation reads images as they are stored", "without --orient: turn the files, `exiftran -ai *.jpg`"
        )
    with launched(options.launcher, resolve_device(workspace.run.device)) as (processes, device):
        if options.batch % processes.count or options.batch == processes.count:
            raise UsageError(f"{processes.count} processes cannot share {options.batch} crops, two or more each", "--batch")
        design, weights = _design(workspace, options)
        with TrainingRun(workspace, STAGE, workspace.retrained, processes, progress, FILES) as training:
            training.lock()
            if processes.first:
                _prepare(training, options, design, weights)
            processes.wait()  # until the first one has written list and config
            if not options.write_only:
                _train(training, options, design, device)
        return training.counts


def _prepare(training: TrainingRun, options: RetrainOptions, design: Design, weights: str) -> None:
    """Check the label maps, compare the settings, and write list and config. Only the first process does this."""
    workspace, progress = training.workspace, training.progress
    dataset = workspace.dataset
    failures = workspace.failures(STAGE, progress)
    corrected = corrected_masks(workspace, options.supervision, options.corrected)
    if options.supervision == "masks":
        progress.note(UPPER_BOUND)
        pairs = ground_truth(dataset, "--supervision pseudo")
    else:
        pairs = pseudo_masks(dataset, options.masks or workspace.masks, options.masks is not None, corrected)
        check_pseudo(dataset, options.masks or workspace.masks)
        if len(pairs) < len(dataset.samples):
            progress.note(f"{len(pairs)} of {len(dataset.samples)} images have a mask; the others are left out")
        for words in corrected.said(len(pairs)):
            progress.note(words)
    maps = checked(pairs, dataset.classes.names, failures, progress)
    training.counts.failed = failures.count
    if options.supervision == "masks":
        _check_truth(maps, dataset, progress)
    unseen = [name for name, count in zip(dataset.classes.names, maps.counts[1:], strict=True) if not count]
    if unseen:
        progress.note(f"no label map has a pixel of {', '.join(unseen)}: the network cannot learn these classes")
    settings = {
        **options.model_dump(mode="json", exclude=NOT_SETTINGS),
        "iterations": options.iterations,
        "network": design.note(),
        "backbone_weights": weights,
        "classes": list(dataset.classes.names),
        "label_maps": _content(maps),
        "processes": training.processes.count,
    }
    if not options.write_only:
        training.open(settings, options.resume)
    elif workspace.differs(workspace.retrained, settings):
        hint = "give another --work, or retrain without --write-only and with --force"
        raise UsageError(f"{workspace.retrained} was trained with other options: its config would be lost", hint)
    _write_config(training, options, design, maps)


def _check_truth(maps: LabelMaps, dataset: Dataset, progress: Progress) -> None:
    """Refuse ground truth that marks objects with 255; note everything else that makes it doubtful."""
    maps.truth.refuse_binary(f"split {dataset.split}")
    for warning in maps.truth.warnings(dataset.classes.names):
        progress.note(warning)


def _write_config(training: TrainingRun, options: RetrainOptions, design: Design, maps: LabelMaps) -> None:
    workspace, file = training.workspace, training.folder / CONFIG
    dataset = workspace.dataset
    train = split_files("train", maps.samples, maps.paths, training.folder)
    val = None
    if options.val_split is not None:
        split = load_dataset(workspace.dataset_options.model_copy(update={"split": options.val_split}))
        pairs = ground_truth(split, "train without --val-split")
        scored = checked(pairs, dataset.classes.names, None, training.progress)
        _check_truth(scored, split, training.progress)
        val = split_files("val", scored.samples, scored.paths, training.folder)
    classes = list(dataset.classes.label_map_names)
    labels = "ground-truth masks: an upper bound" if options.supervision == "masks" else "pseudo-masks"
    sections = config(
        design.config(_weights_argument(workspace, options), maps.class_weights() if options.class_balanced else None),
        options,
        design.crop,
        classes,
        palette()[: len(classes)].tolist(),
        train,
        val,
        options.batch // training.processes.count,
        min(4, resolve_workers(workspace.run.workers)),
    )
    stands_on, photos = mmsegmentation_versions()["mmsegmentation"], len(maps.samples)
    title = (
        f"mmsegmentation {stands_on}: {options.model} on {labels} of {photos} images, written by `ssr retrain`.\n"
        f"Runs in a stock mmsegmentation too: python tools/train.py {file.resolve()}"
    )
    with atomic_path(file) as temporary:
        temporary.write_text(config_text(sections, title), encoding="utf-8")


def _train(training: TrainingRun, options: RetrainOptions, design: Design, device: torch.device) -> None:
    import_mmsegmentation()
    from pipelines.mmsegmentation.checkpoint import read_meta
    from pipelines.mmsegmentation.hook import TrainingHook
    from pipelines.mmsegmentation.training import run as train

    if device.index is not None:
        torch.cuda.set_device(device)
    outputs = Outputs(training, options, design)
    meta = read_meta(outputs.state) if options.resume == "auto" else None
    #  only the first process has made the settings, so it decides for all whether the state matches them
    owned = meta is not None and (not training.processes.first or meta.get("owner") == training.owner)
    before = int(meta["iter"]) if training.processes.gather([owned])[0] and meta is not None else 0
    outputs.curves.open(before, meta.get("waiting", []) if meta is not None and before else [])
    training.begin(before, options.iterations)
    runner = train(
        training.folder / CONFIG,
        training.folder / "mmengine",
        TrainingHook(outputs.curves, outputs, options),
        outputs.state if before else None,
        "pytorch" if training.processes.count > 1 else "none",
        device,
        to_train=before < options.iterations,
        to_validate=lambda: options.val_split is not None and not outputs.is_validated(),
    )

    def write_model() -> None:
        if runner is not None:
            outputs.write_model(training.model, runner, options.iterations)

    training.end(device, write_model, {"iterations": options.iterations, **training.counts.as_dict()})


class Outputs:
    """The outputs of mmengine's training, step by step; see `pipelines.mmsegmentation.hook.Watcher`.

    Args:
        training: Folder, counts, progress.
        options: Network, labels, schedule.
        design: Design of the network.
    """

    def __init__(self, training: TrainingRun, options: RetrainOptions, design: Design) -> None:
        self.training, self.options, self.design = training, options, design
        self.state = training.folder / "state.pth"
        self.curves = ValidatedCurves(training.folder, LABELS)

    def stops(self) -> bool:
        """Return whether one of the processes was told to stop."""
        return self.training.stops()

    def stepped(self, iteration: int, mean: dict[str, Any] | None) -> None:
        """Count a step."""
        self.training.stepped()
        if mean is not None and (iteration % 100 == 0 or iteration == self.options.iterations):
            status = f"loss {mean['segmentation']:.3f}, learning rate {mean['learning_rate']:.2e}"
            self.training.progress.status(status)

    def save(self, runner: Runner, iteration: int) -> None:
        """Write curves and model, then the state."""
        from pipelines.mmsegmentation.checkpoint import write_state

        def write_outputs() -> None:
            self.curves.save()
            self.write_model(self.training.model, runner, iteration)

        owner, waiting = self.training.owner, self.curves.waiting
        self.training.save(iteration, write_outputs, lambda: write_state(self.state, runner, iteration, owner, waiting))

    def validated(self, runner: Runner, iteration: int, miou: float) -> None:
        """Store a score; the best network so far is kept."""
        if self.training.processes.first:
            best, how, progress = self.training.folder / "best.safetensors", "mmsegmentation, one scale", self.training.progress
            split = str(self.options.val_split)
            self.curves.score(iteration, split, miou, how, lambda: self.write_model(best, runner, iteration), progress)

    def is_validated(self) -> bool:
        """Return whether the last step's network was scored; the first process's curves decide for all."""
        scored = self.curves.is_scored(self.options.iterations, self.options.val_split)
        return self.training.processes.gather([scored])[0]

    def write_model(self, path: Path, runner: Runner, iteration: int) -> None:
        """Write the present network."""
        from pipelines.mmsegmentation.checkpoint import module_of

        options = self.options
        corrected = corrected_masks(self.training.workspace, options.supervision, options.corrected)
        supervision = corrected.supervision(options.supervision)
        write_retrained(path, module_of(runner), self.design, supervision, iteration, self.design.note())


def _check(workspace: Workspace, options: RetrainOptions) -> None:
    if options.min_scale > options.max_scale:
        raise UsageError(f"scales from {options.min_scale} to {options.max_scale}: nothing between", "--min-scale, --max-scale")
    device = resolve_device(workspace.run.device).type
    if options.amp and device != "cuda":
        raise UsageError("mmengine's autocast needs a GPU", "--no-amp")
    from mmengine.device import get_device

    if device != get_device():
        hint = "CUDA_VISIBLE_DEVICES= hides a GPU" if get_device() == "cuda" else "another machine"
        raise UsageError(f"expected --device {get_device()}, which mmengine takes wherever there is one, found {device}", hint)
    if options.model not in NETWORKS and not options.model.endswith(".py"):
        raise UsageError(f"no network {options.model!r}: expected {', '.join(NETWORKS)} or a config FILE.py", "--model")
    own = {"class_balanced": False, "backbone": "auto", "backbone_weights": "hub", "channels": 0}
    given = [f"--{name.replace('_', '-')}" for name, default in own.items() if getattr(options, name) != default]
    if options.model not in NETWORKS and given:
        raise UsageError(f"{options.model} defines the whole network, found {given[0]}", "set it in the file")


def _design(workspace: Workspace, options: RetrainOptions) -> tuple[Design, str]:
    """Return the network to train, and the identity of the weights that its training starts from."""
    names, model, crop = workspace.dataset.classes.names, options.model, options.crop
    if model not in NETWORKS:
        import_mmsegmentation()
        file = str(Path(model).expanduser().resolve())
        Design(file, None, 0, names, crop).config()
        return Design(file, None, 0, names, crop), "of the config file"
    name = AUTO_BACKBONE[model] if options.backbone == "auto" else options.backbone
    backbone: TimmModel | str = name if name in MIT else TimmModel(name)
    if name == "dino":
        architecture = dino_architecture(workspace.dino.model)
        odd = [key for key, value in architecture.arguments.items() if not isinstance(value, int | float)]
        if odd:
            raise UsageError(
                f"{workspace.dino.model}: expected numbers in model_args, found {odd[0]} of another type", "--backbone"
            )
        backbone = architecture
    weights = _weights_argument(workspace, options)
    design = Design(model, backbone, options.channels, names, crop)
    patch = design.parts(weights).patch
    if patch:
        design = Design(model, backbone, options.channels, names, max(1, round(crop / patch)) * patch)
    return design, weights if weights in {"hub", "none"} else file_sha256(Path(weights).expanduser())


def _weights_argument(workspace: Workspace, options: RetrainOptions) -> str:
    """Return the backbone's weights; those of ``dino`` are the ones of [dino], unless others are given."""
    name = AUTO_BACKBONE.get(options.model, "") if options.backbone == "auto" else options.backbone
    return workspace.dino.pretrained if name == "dino" and options.backbone_weights == "hub" else options.backbone_weights


def _content(maps: LabelMaps) -> str:
    """Return SHA-256 over the ids and bytes of all label maps."""
    return files_sha256((sample.image_id, path) for sample, path in zip(maps.samples, maps.paths, strict=True))
