"""`ssr retrain`: a standard segmentation network on mmsegmentation, from the pseudo-masks of `ssr refine`."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pipelines.datasets import load_dataset
from pipelines.datasets.classes import palette
from pipelines.encoders.model_config import TimmModel, dino_architecture
from pipelines.encoders.weights import file_sha256
from pipelines.errors import UsageError
from pipelines.execution.devices import peak_memory, resolve_device
from pipelines.execution.interruption import interrupted
from pipelines.execution.pool import resolve_workers
from pipelines.execution.progress import Progress, Silent
from pipelines.figures.curves import curves_figure
from pipelines.mmsegmentation.backbone import MIT
from pipelines.mmsegmentation.config import config, config_text
from pipelines.mmsegmentation.imports import import_mmsegmentation, mmsegmentation_versions
from pipelines.mmsegmentation.launch import launched
from pipelines.mmsegmentation.retrained import Design, write_retrained
from pipelines.models.segmenter import UPPER_BOUND
from pipelines.options.retrain import NETWORKS, RetrainOptions
from pipelines.stages.retrain.data import LabelMaps, check_pseudo, checked, ground_truth, pseudo_masks, split_files
from pipelines.stores.files import atomic_path, remove_leftovers
from pipelines.stores.manifest import Manifest, digest
from pipelines.stores.one_writer import one_writer
from pipelines.training.curves import Curves
from pipelines.training.processes import Processes
from pipelines.workdir.counts import Counts
from pipelines.workdir.workspace import Workspace

if TYPE_CHECKING:
    from mmengine.runner import Runner

STAGE = "retrain"
FOLDER = "retrain"
AUTO_BACKBONE = {"deeplabv3plus": "resnet50", "segformer": "mit_b0", "upernet": "dino"}
NOT_SETTINGS = {"schedule", "val_split", "validate_every", "save_every", "resume", "launcher", "write_only"} | {
    "masks",
    "model",
    "backbone",
    "backbone_weights",
}
"""Options that change nothing in the network, or are recorded by what they stand for."""


def run(workspace: Workspace, options: RetrainOptions, progress: Progress | None = None) -> Counts:
    """Write ``WORK/retrain/config.py``, and train from where the last run stood until ``WORK/retrained.safetensors`` is done.

    Args:
        workspace: Photos, classes and pseudo-masks.
        options: Network, labels, schedule.
        progress: Told about each step.

    Returns:
        Steps done and skipped, photos failed. With ``write_only`` none.

    Raises:
        UsageError: Options that do not fit, or other ones than a training before it had while ``workspace.force`` is off.
        SsrError: mmsegmentation is missing, or there is nothing to learn from.
        TooManyFailures: More bad photos or masks than allowed.
    """
    mmsegmentation_versions()
    _check(workspace, options)
    with launched(options.launcher, resolve_device(workspace.run.device)) as (processes, device):
        if options.batch % processes.count or options.batch == processes.count:
            raise UsageError(f"{processes.count} processes cannot share {options.batch} crops, two or more each", "--batch")
        return _Retraining(workspace, options, processes, device, progress if progress and processes.first else Silent()).run()


class _Retraining:
    """One run: data, config, state, curves and model around mmengine's Runner."""

    def __init__(
        self, workspace: Workspace, options: RetrainOptions, processes: Processes, device: torch.device, progress: Progress
    ) -> None:
        self.workspace, self.options, self.processes, self.device, self.progress = (
            workspace,
            options,
            processes,
            device,
            progress,
        )
        self.folder = workspace.work / FOLDER
        self.state, self.config_file = self.folder / "state.pth", self.folder / "config.py"
        self.design, self.weights = _design(workspace, options)
        self.note = self.design.note()
        self.curves = Curves(self.folder / "curves.jsonl")
        self.settings: dict[str, Any] = {}
        self.counts = Counts()
        self._manifest: Manifest | None = None

    def run(self) -> Counts:
        """Write the config, then train."""
        if not self.processes.first:
            self.processes.wait()  # the first one writes list and config
            if not self.options.write_only:
                self._train()
            return self.counts
        with one_writer(self.folder, "training"):
            remove_leftovers(self.workspace.work, self.workspace.retrained.stem)
            self._prepare()
            self.processes.wait()
            if not self.options.write_only:
                self._train()
        return self.counts

    def _prepare(self) -> None:
        workspace, options, progress = self.workspace, self.options, self.progress
        dataset = workspace.dataset
        failures = workspace.failures(STAGE, progress)
        if options.supervision == "masks":
            progress.note(UPPER_BOUND)
            pairs = ground_truth(dataset, "--supervision pseudo")
        else:
            pairs = pseudo_masks(dataset, options.masks or workspace.masks, options.masks is not None)
            check_pseudo(dataset, options.masks or workspace.masks)
            if len(pairs) < len(dataset.samples):
                progress.note(f"{len(pairs)} of {len(dataset.samples)} photos have a pseudo-mask; the others are left out")
        maps = checked(pairs, dataset.classes.names, failures, progress)
        self.counts.failed = failures.count
        unseen = [name for name, count in zip(dataset.classes.names, maps.counts[1:], strict=True) if not count]
        if unseen:
            progress.note(f"no label map has a pixel of {', '.join(unseen)}: the network cannot learn what it never sees")
        self.settings = {
            **options.model_dump(mode="json", exclude=NOT_SETTINGS),
            "iterations": options.iterations,
            "network": self.note,
            "backbone_weights": self.weights,
            "classes": list(dataset.classes.names),
            "label_maps": _content(maps),
            "processes": self.processes.count,
        }
        if options.write_only and workspace.differs(workspace.retrained, self.settings):
            hint = "give another --work, or retrain without --write-only and with --force"
            raise UsageError(f"{workspace.retrained} was trained with other options: its config would be lost", hint)
        if not options.write_only:
            self._manifest = workspace.settle(workspace.retrained, STAGE, self.settings, self._clear)
            if options.resume == "never":
                self._clear()
        self._write_config(maps)

    def _write_config(self, maps: LabelMaps) -> None:
        options, dataset = self.options, self.workspace.dataset
        train = split_files("train", maps.samples, maps.paths, self.folder)
        val = None
        if options.val_split is not None:
            split = load_dataset(self.workspace.dataset_options.model_copy(update={"split": options.val_split}))
            found = checked(ground_truth(split, "train without --val-split"), dataset.classes.names, None, self.progress)
            val = split_files("val", found.samples, found.paths, self.folder)
        classes = ["background", *dataset.classes.names]
        labels = "ground-truth masks: an upper bound" if options.supervision == "masks" else "pseudo-masks"
        sections = config(
            self.design.config(
                _weights_argument(self.workspace, options), maps.class_weights() if options.class_balanced else None
            ),
            options,
            self.design.crop,
            classes,
            palette()[: len(classes)].tolist(),
            train,
            val,
            options.batch // self.processes.count,
            min(4, resolve_workers(self.workspace.run.workers)),
        )
        stands_on, photos = mmsegmentation_versions()["mmsegmentation"], len(maps.samples)
        title = (
            f"mmsegmentation {stands_on}: {options.model} on {labels} of {photos} photos, written by `ssr retrain`.\n"
            f"Runs in a stock mmsegmentation too: python tools/train.py {self.config_file.resolve()}"
        )
        with atomic_path(self.config_file) as temporary:
            temporary.write_text(config_text(sections, title), encoding="utf-8")

    def _train(self) -> None:
        import_mmsegmentation()
        from pipelines.mmsegmentation.checkpoint import read_meta
        from pipelines.mmsegmentation.hook import TrainingHook
        from pipelines.mmsegmentation.training import run as train

        options = self.options
        if self.device.index is not None:
            torch.cuda.set_device(self.device)
        meta = read_meta(self.state) if options.resume == "auto" else None
        before = self._before(meta)
        self.curves.open(before, meta.get("waiting", []) if meta is not None and before else [])
        self.counts.skipped = before
        self.progress.start("retrain", options.iterations, before, "steps")
        started = time.monotonic()
        runner = train(
            self.config_file,
            self.folder / "mmengine",
            TrainingHook(self.curves, self, options),
            self.state if before else None,
            "pytorch" if self.processes.count > 1 else "none",
            self.device,
            to_train=before < options.iterations,
            to_validate=lambda: options.val_split is not None and not self._is_validated(),
        )
        self.progress.finish()
        if not self.processes.first or self._manifest is None:
            return
        if self.counts.done:
            seconds = 1000 * (time.monotonic() - started) / self.counts.done
            self.progress.status(f"{seconds:.0f} s per 1,000 steps, {peak_memory(self.device)}")
        if runner is not None and not self.workspace.retrained.is_file():
            self._write_model(self.workspace.retrained, runner, options.iterations)
        self._manifest.counts, self._manifest.complete = {"iterations": options.iterations, **self.counts.as_dict()}, True
        self._manifest.write(self.workspace.retrained.with_suffix(".json"))

    def _before(self, meta: dict[str, Any] | None) -> int:
        """Steps of a state that was trained with the present options; the first process knows these."""
        own = meta is not None and (not self.processes.first or meta.get("owner") == digest(self.settings))
        return int(meta["iter"]) if self.processes.gather([own])[0] and meta is not None else 0

    def stops(self) -> bool:
        """Whether one of the processes was asked to; see `pipelines.mmsegmentation.hook.Watcher`."""
        return self.processes.any(interrupted())

    def stepped(self, iteration: int, mean: dict[str, Any] | None) -> None:
        """Count a step."""
        self.counts.done += 1
        self.progress.advance()
        if mean is not None and (iteration % 100 == 0 or iteration == self.options.iterations):
            self.progress.status(f"loss {mean['segmentation']:.3f}, learning rate {mean['learning_rate']:.2e}")

    def save(self, runner: Runner, iteration: int) -> None:
        """Curves and model, then the state: a training killed in between takes its steps again and writes the others again."""
        from pipelines.mmsegmentation.checkpoint import write_state

        if self._manifest is None:
            return
        self._write_curves()
        self._write_model(self.workspace.retrained, runner, iteration)
        write_state(self.state, runner, iteration, digest(self.settings), self.curves.waiting)
        self._manifest.counts = {"iterations": iteration}
        self._manifest.write(self.workspace.retrained.with_suffix(".json"))

    def validated(self, runner: Runner, iteration: int, miou: float) -> None:
        """Note a score; the best network so far is kept."""
        if self._manifest is None:
            return
        split = str(self.options.val_split)
        key = (iteration, split)  # a resumed training scores again what it may have scored
        self.curves.lines = [line for line in self.curves.lines if (line["iteration"], line.get("val_split")) != key]
        before = [float(line["val_miou"]) for line in self.curves.lines if line.get("val_split") == split]
        best = miou > max(before, default=-1.0)
        if best:
            self._write_model(self.folder / "best.safetensors", runner, iteration)
        self.curves.write({"iteration": iteration, "val_miou": miou, "val_split": split})
        self._write_curves()
        self.progress.status(f"mIoU {100 * miou:.2f} on {split} (mmsegmentation, one scale){', best so far' * best}")

    def _is_validated(self) -> bool:
        """Whether the last step's network was scored; all processes see the same curves."""
        wanted = (self.options.iterations, self.options.val_split)
        scored = any((line["iteration"], line.get("val_split")) == wanted for line in self.curves.lines)
        return bool(self.processes.gather([scored])[0])

    def _write_curves(self) -> None:
        self.curves.flush()
        curves_figure(self.curves.lines, self.folder / "curves.png")

    def _write_model(self, path: Path, runner: Runner, iteration: int) -> None:
        from pipelines.mmsegmentation.checkpoint import module_of

        write_retrained(path, module_of(runner), self.design, self.options.supervision, iteration, self.note)

    def _clear(self) -> None:
        names = ("state.pth", "best.safetensors", "curves.jsonl", "curves.png")
        for path in (self.workspace.retrained, *(self.folder / name for name in names)):
            path.unlink(missing_ok=True)


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
        raise UsageError(f"the network of {options.model} is as its file says, found {given[0]}", "say it in the file")


def _design(workspace: Workspace, options: RetrainOptions) -> tuple[Design, str]:
    """What is trained, and the identity of the weights that it starts from."""
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
    """Where the backbone's weights come from; ``dino`` has those of [dino] unless others are given."""
    name = AUTO_BACKBONE.get(options.model, "") if options.backbone == "auto" else options.backbone
    return workspace.dino.pretrained if name == "dino" and options.backbone_weights == "hub" else options.backbone_weights


def _content(maps: LabelMaps) -> str:
    """SHA-256 over the ids and the bytes of all label maps."""
    content = hashlib.sha256()
    for sample, path in zip(maps.samples, maps.paths, strict=True):
        content.update(f"{sample.image_id}\0{file_sha256(path)}\n".encode())
    return content.hexdigest()
