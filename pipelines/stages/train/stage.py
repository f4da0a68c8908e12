"""`ssr train`: trains a segmentation decoder on the frozen CLIP, with pseudo-masks that are made on-line."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import TypeVar

import torch

from pipelines.datasets import Dataset, load_dataset
from pipelines.datasets.check import look_at_truth
from pipelines.errors import ImageError, TooManyFailures
from pipelines.execution.devices import resolve_device
from pipelines.execution.interruption import refuse_interrupted
from pipelines.execution.progress import Progress
from pipelines.method.evidence import Evidence
from pipelines.method.online_labels import OnlineLabels
from pipelines.method.photo import Crop
from pipelines.models.alignment_file import identity, write_alignment
from pipelines.models.segmenter import UPPER_BOUND, Segmenter, write_segmenter
from pipelines.options.train import TrainOptions
from pipelines.stages.train.crops import BadPhotos
from pipelines.stages.train.inputs import TrainInputs, new_decoder, train_inputs
from pipelines.stages.train.settings import TrainSections, train_settings
from pipelines.stages.train.validation import Validation
from pipelines.stages.train.views import Views, learn_views
from pipelines.training.losses import Targets, column_names
from pipelines.training.processes import Processes, joined_processes
from pipelines.training.segmentation import SegmentationTrainer, StepLosses
from pipelines.workdir.corrected import corrected_masks
from pipelines.workdir.counts import Counts
from pipelines.workdir.training_run import TrainingRun
from pipelines.workdir.validated_curves import ValidatedCurves
from pipelines.workdir.workspace import Workspace

STAGE = "train"
FILES = ("state.safetensors", "best.safetensors", "cmpa.safetensors", "curves.jsonl", "curves.png")
LOG_STEPS = 100
"""Number of steps between two lines of the log."""

Item = TypeVar("Item")
Load = Callable[[], tuple[TrainInputs, Validation | None]]
"""Loads the models, once for any number of calls; only the first process gets a validation."""


def run(workspace: Workspace, sections: TrainSections, progress: Progress | None = None) -> Counts:
    """Train from the last saved state, and write ``WORK/model.safetensors``.

    Args:
        workspace: Names the images and superpixels, and the ground truth if ``supervision`` is ``masks``.
        sections: Options of the training and of its labels.
        progress: Receives each step.

    Returns:
        Steps done and skipped, images failed.

    Raises:
        UsageError: An earlier training had other options and ``workspace.force`` is off, or options do not fit.
        SsrError: There are no superpixels although a part needs them.
        TooManyFailures: There are more bad images than allowed; what was trained is kept.
    """
    sections = sections.checked(workspace)
    views = Views(workspace, sections) if sections.train.cache_views else None
    with joined_processes(resolve_device(workspace.run.device)) as (processes, device), ExitStack() as stack:

        @cache
        def load() -> tuple[TrainInputs, Validation | None]:
            inputs = train_inputs(workspace, sections, device, processes, stack, labelled=views is not None)
            if sections.train.val_split is None or not processes.first:
                return inputs, None
            val = load_dataset(workspace.dataset_options.model_copy(update={"split": sections.train.val_split}))
            validation = Validation(val, inputs.encoders.clip)
            _check_truth(val, training.progress)
            return inputs, validation

        with TrainingRun(workspace, STAGE, workspace.model, processes, progress, FILES) as training:

            def prepare() -> None:
                if sections.train.supervision == "masks" and processes.first:
                    _check_truth(workspace.dataset, training.progress)
                if views is not None and processes.first:
                    views.collect(lambda: train_inputs(workspace, sections, device, processes, stack), training.progress)
                load()

            training.open(train_settings(workspace, sections, processes), sections.train.resume, prepare)
            _train(training, sections.train, device, load, views)
        return training.counts


def _check_truth(dataset: Dataset, progress: Progress) -> None:
    """Refuse ground truth that marks objects with 255 before the first step; note everything else that makes it doubtful."""
    truth, _ = look_at_truth(dataset)
    truth.refuse_binary(f"split {dataset.split}")
    for warning in truth.warnings(dataset.classes.names):
        progress.note(f"ground truth of split {dataset.split}, {truth.images} masks opened: {warning}")


def learn(trainer: SegmentationTrainer, crops: Sequence[Crop], evidence: Evidence, labels: OnlineLabels | None) -> None:
    """Run the forward pass, the labels and the gradient of one micro-batch.

    Args:
        trainer: Trainer of the decoder.
        crops: The micro-batch.
        evidence: The encoders' outputs for the crops.
        labels: Makes label maps of the crops; None: they have their ground truth.
    """
    state = trainer.forward(evidence.clip_block_tokens, evidence.grid, [crop.slot for crop in crops])
    if labels is None:
        targets = Targets(torch.stack([crop.target for crop in crops if crop.target is not None]).to(trainer.device))
    else:
        targets = labels(crops, evidence, state.filter_affinity)
    trainer.backward(state, targets, crops)


def take_step(
    trainer: SegmentationTrainer, crops: Sequence[Item], size: int, learn_from: Callable[[Sequence[Item]], None]
) -> StepLosses:
    """Take one step, micro-batch by micro-batch, with the memory of one.

    Args:
        trainer: Trainer of the decoder.
        crops: This process's crops of the step, or their cached views; crops of bad images are absent.
        size: Number of crops in a micro-batch.
        learn_from: Adds the gradient of a micro-batch.
    """
    for number in range(trainer.micro_batches):
        micro_batch = crops[number * size : (number + 1) * size]
        if micro_batch:
            learn_from(micro_batch)
        else:
            trainer.skip()
    return trainer.step()


def _steps(
    inputs: TrainInputs, views: Views | None, trainer: SegmentationTrainer, processes: Processes
) -> Iterator[tuple[StepLosses, BadPhotos]]:
    """Take steps without end, and yield the losses and bad images of each."""
    encoders, patch = inputs.encoders, inputs.encoders.clip.patch_size
    _, size = inputs.source.micro_batches(processes)

    def from_crops(crops: Sequence[Crop]) -> None:
        learn(trainer, crops, encoders.encode([crop.photo for crop in crops]), inputs.labels)

    if views is None:
        for _, crops, bad in inputs.source.steps(trainer.iteration, processes):
            yield take_step(trainer, crops, size, from_crops), bad
    else:
        for _, kept, bad in views.steps(inputs, trainer.iteration, processes):
            yield take_step(trainer, kept, size, lambda few: learn_views(trainer, few, patch, inputs.text)), bad


def _train(training: TrainingRun, options: TrainOptions, device: torch.device, load: Load, views: Views | None) -> None:
    """Train from the last saved state: step, log, validate, save. If no step is left, no model is loaded."""
    processes, labels = training.processes, column_names(options)
    processes.wait()
    saved = training.saved_state() if options.resume == "auto" else None
    iteration = int(saved[0]["iteration"]) if saved else 0
    curves = ValidatedCurves(training.folder, labels)
    curves.open(iteration, saved[1].get("waiting", []) if saved else [])
    if options.supervision == "masks":
        training.progress.note(UPPER_BOUND)
    corrected = corrected_masks(training.workspace, options.supervision, options.corrected)
    if processes.first:
        for words in corrected.said(len(training.workspace.dataset.samples)):
            training.progress.note(words)
    training.begin(iteration, options.iterations)
    unscored = options.val_split is not None and not curves.is_scored(iteration, options.val_split)
    if iteration == options.iterations and training.model.is_file() and not (unscored and processes.first):
        processes.wait()
        training.end(device, lambda: None, {"iterations": iteration, **training.counts.as_dict()})
        return
    inputs, validation = load()
    count, _ = inputs.source.micro_batches(processes)
    encoder, online = inputs.encoders.clip, inputs.heads.online if inputs.heads else None
    decoder = new_decoder(options, encoder, len(training.workspace.dataset.classes.names), inputs.aligned)
    project = encoder.tail((1, 1)).project
    trainer = SegmentationTrainer(decoder, options, device, online, processes, encoder.dtype, count, project)
    if saved is not None:
        trainer.restore(saved[0])
    outputs, unusable = _Outputs(training, options, inputs, trainer, curves), _Unusable(training)
    for losses, bad in islice(_steps(inputs, views, trainer, processes), options.iterations - iteration):
        unusable.note(bad)
        last = trainer.iteration == options.iterations
        stop = training.stops()
        due = last or trainer.iteration % options.save_every == 0
        training.stepped()
        outputs.log(losses, end=due)
        if options.validate_every and trainer.iteration % options.validate_every == 0 and not last:
            outputs.validate(validation)
        if due or stop:
            training.save(trainer.iteration, outputs.write, outputs.write_state)
        if stop and not last:
            refuse_interrupted()
    outputs.validate(validation)
    processes.wait()
    training.counts.failed = len(unusable.image_ids)
    counts = {"iterations": trainer.iteration, **training.counts.as_dict()}
    training.end(device, lambda: outputs.write_model(training.model), counts)


class _Outputs:
    """The outputs of a training: curves, model, heads, state."""

    def __init__(
        self,
        training: TrainingRun,
        options: TrainOptions,
        inputs: TrainInputs,
        trainer: SegmentationTrainer,
        curves: ValidatedCurves,
    ) -> None:
        self.training, self.options, self.inputs, self.trainer, self.curves = training, options, inputs, trainer, curves

    def log(self, losses: StepLosses, *, end: bool) -> None:
        """Add a step's losses to the curves, and show their means in intervals."""
        iteration = self.trainer.iteration
        mean = self.curves.add(losses, iteration, end=end)
        if mean is not None and (iteration % LOG_STEPS == 0 or iteration == self.options.iterations):
            values = [f"{self.curves.labels[name]} {mean[name]:.3f}" for name in self.trainer.losses]
            self.training.progress.status(f"{', '.join(values)}, learning rate {mean['learning_rate']:.2e}")

    def validate(self, validation: Validation | None) -> None:
        """Score the present decoder, once per step; the training can go on after a bad image."""
        split, iteration = str(self.options.val_split), self.trainer.iteration
        if validation is not None and not self.curves.is_scored(iteration, split):
            best = self.training.folder / "best.safetensors"
            miou = validation.miou(self._segmenter())
            how, progress = "one scale, no boundary refinement", self.training.progress
            self.curves.score(iteration, split, miou, how, lambda: self.write_model(best), progress)

    def write(self) -> None:
        """Write curves, model, and heads that were trained further; those of `ssr align` are not changed."""
        self.curves.save()
        self.write_model(self.training.model)
        heads, text = self.inputs.heads, self.inputs.text
        if heads is not None and text is not None:
            trained = replace(heads.alignment, image_prototypes=heads.online.prototypes.cpu())
            belongs_to = identity(self.inputs.encoders.clip.weights, self.training.workspace.dataset.classes, text)
            write_alignment(self.training.folder / "cmpa.safetensors", trained, belongs_to)

    def write_state(self) -> None:
        """Write the state, with the steps whose means are not in the curves yet."""
        self.training.save_state(self.trainer.state(), waiting=self.curves.waiting)

    def write_model(self, path: Path) -> None:
        """Write the present decoder."""
        write_segmenter(path, self._segmenter(), self.inputs.encoders.clip.weights)

    def _segmenter(self) -> Segmenter:
        decoder, names = self.trainer.decoder.eval(), self.training.workspace.dataset.classes.names
        supervision = self.inputs.source.corrected.supervision(self.options.supervision)
        return Segmenter(decoder, decoder.sizes["blocks"], names, supervision, self.trainer.iteration)


class _Unusable:
    """The bad images of all processes, each counted once, although every epoch finds it again."""

    def __init__(self, training: TrainingRun) -> None:
        self.processes, self.allowed = training.processes, training.workspace.run.max_failures
        self.image_ids: set[str] = set()
        self._failures = training.failures

    def note(self, photos: Sequence[tuple[str, ImageError]]) -> None:
        """Count the bad images of a step.

        Raises:
            TooManyFailures: There are more than allowed; all processes raise it.
        """
        fresh = [(image_id, e.message, e.hint) for image_id, e in photos if image_id not in self.image_ids]
        for image_id, message, hint in self.processes.gather(fresh):
            if image_id in self.image_ids:
                continue
            self.image_ids.add(image_id)
            if self._failures is not None:
                self._failures.add(image_id, ImageError(message, hint))
            elif 0 <= self.allowed < len(self.image_ids):
                raise TooManyFailures(f"stopped at bad image {len(self.image_ids)}: {image_id}: {message}")
