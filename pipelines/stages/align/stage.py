"""`ssr align`: CMPA. Two heads are trained to align a class's patches with its name, from image-level labels alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cache
from typing import Any

import torch

from pipelines.datasets.base import Sample
from pipelines.errors import SsrError, UsageError
from pipelines.execution.devices import resolve_device
from pipelines.execution.interruption import refuse_interrupted
from pipelines.execution.progress import Progress, Silent
from pipelines.method.loading import FrozenModels
from pipelines.models.alignment_file import Alignment, identity, write_alignment
from pipelines.options.align import AlignOptions
from pipelines.options.stages import CamsOptions, RefineOptions
from pipelines.stages.align.inputs import AlignInputs, needs_of
from pipelines.stores.files import read_json, write_json
from pipelines.stores.manifest import digest
from pipelines.training.alignment import AlignmentTrainer, Quality, step_count
from pipelines.training.processes import Processes, joined_processes
from pipelines.workdir.counts import Counts
from pipelines.workdir.settings import model_sources
from pipelines.workdir.training_run import TrainingRun
from pipelines.workdir.workspace import Workspace

STAGE = "align"
METRICS = "metrics.json"
FILES = ("state.safetensors", METRICS)
SAVE_EVERY = 500
"""Number of steps between two saves of the state, which is saved at each refresh too."""


def run(
    workspace: Workspace,
    options: AlignOptions,
    cams: CamsOptions,
    refine: RefineOptions,
    progress: Progress | None = None,
) -> Counts:
    """Collect patches of every image, train the heads, write ``WORK/cmpa.safetensors``.

    Args:
        workspace: Names the images and superpixels.
        options: Options of the training.
        cams: Plain CLIP's read-out, whose CAMs pool the features; one scale, no mirror image.
        refine: Options by which these CAMs are refined first, if ``options.cam`` is the refined one.
        progress: Receives images, then steps.

    Returns:
        Images done, skipped and failed.

    Raises:
        UsageError: The heads were made with other options, and ``workspace.force`` is off; or there is nothing to contrast
            with.
        SsrError: There are no superpixels although a part needs them, or no image has a class.
        TooManyFailures: There are more bad images than allowed; what was computed is kept.
    """
    progress = progress or Silent()
    plain = cams.model_copy(update={"ckpt": None, "scales": (1.0,), "flip": False})
    inputs = AlignInputs(workspace, options, plain, refine, model_sources(workspace, needs_of(options, plain, refine)))
    text = inputs.sources.text
    if text is None or len(text.classes.names) + len(text.background_names) < 2:
        raise UsageError("one class and no background words: nothing to tell apart", "--classes, --background-bank")
    with joined_processes(resolve_device(workspace.run.device)) as (processes, device):

        @cache
        def load() -> FrozenModels:
            return FrozenModels(inputs.sources, device, workspace.run.precision)

        counts = Counts()
        if processes.first:
            counts = inputs.collect(load, progress)
        processes.wait()
        with TrainingRun(workspace, STAGE, workspace.checkpoint, processes, progress, FILES) as training:
            samples = inputs.collected()

            @cache
            def make_trainer() -> AlignmentTrainer:
                embeddings = load().embeddings
                load.cache_clear()  # frees CLIP's memory for the heads
                assert embeddings is not None  # noqa: S101 - there is text
                classes = len(embeddings.classes)
                return AlignmentTrainer(inputs.data(samples, device), embeddings.all, classes, options, device, processes)

            training.open(_settings(inputs, samples, processes), options.resume, make_trainer)
            _train(training, inputs, len(samples), device, make_trainer)
        processes.wait()
    return counts


def _settings(inputs: AlignInputs, samples: Sequence[Sample], processes: Processes) -> dict[str, Any]:
    """Return all settings that change the heads."""
    return {
        **inputs.options.model_dump(mode="json", exclude={"resume"}),
        "inputs": digest(inputs.settings()),
        "photos": digest([[sample.image_id, list(sample.labels)] for sample in samples]),
        "processes": processes.count,
    }


def _train(
    training: TrainingRun,
    inputs: AlignInputs,
    photos: int,
    device: torch.device,
    make_trainer: Callable[[], AlignmentTrainer],
) -> None:
    """Train from the last saved state, and measure at each refresh of the prototypes; nothing is loaded if no step is left."""
    options, metrics, steps = inputs.options, _Metrics(training), step_count(inputs.options, photos)
    training.processes.wait()
    saved = None
    if options.resume == "auto" and metrics.path.is_file():  # without the earlier metrics, train from the start
        saved = training.saved_state()
    if saved is not None:
        metrics.read()
    iteration = int(saved[0]["iteration"]) if saved else 0
    training.begin(iteration, steps)
    counts = {"iterations": steps, "photos": photos}
    if iteration == steps and training.model.is_file():
        training.end(device, lambda: None, counts)
        return
    trainer = make_trainer()
    if saved is not None:
        trainer.restore(saved[0])
    else:
        trainer.refresh()
        metrics.measure(trainer)
    for _ in trainer.steps():
        training.stepped()
        refreshed = trainer.iteration % trainer.refresh_every == 0 or trainer.iteration == steps
        if refreshed:
            metrics.measure(trainer)
        if refreshed or trainer.iteration % SAVE_EVERY == 0:
            training.save_state(trainer.state())
        if training.stops():
            training.save_state(trainer.state())
            refuse_interrupted()
    training.end(device, lambda: _write_alignment(inputs, trainer), counts, again=training.counts.done > 0)


class _Metrics:
    """The file ``metrics.json``, which holds measures of how well the heads separate classes, at each refresh."""

    def __init__(self, training: TrainingRun) -> None:
        self.training = training
        self.path = training.folder / METRICS
        self.qualities: list[dict[str, float]] = []

    def read(self) -> None:
        """Read the metrics of the training that is resumed."""
        qualities = read_json(self.path)
        if not isinstance(qualities, list) or not all(
            isinstance(quality, dict) and isinstance(quality.get("iteration"), int) for quality in qualities
        ):
            raise SsrError(f"{self.path} is damaged", "remove the file and run its stage again")
        self.qualities = qualities

    def measure(self, trainer: AlignmentTrainer) -> None:
        """Measure the present heads in all processes; the first process writes the file."""
        quality = trainer.quality()
        if self.training.processes.first:
            earlier = [one for one in self.qualities if one["iteration"] < quality.iteration]
            self.qualities = [*earlier, asdict(quality)]
            write_json(self.path, self.qualities)
            self.training.progress.status(describe(quality))


def _write_alignment(inputs: AlignInputs, trainer: AlignmentTrainer) -> None:
    photos = torch.bincount(trainer.data.classes, minlength=trainer.class_count)
    precision = trainer.average_precision()
    heads = trainer.heads.cpu().eval()
    alignment = Alignment(heads, inputs.options.features, photos, precision, trainer.prototypes.image.cpu())
    workspace, sources = inputs.workspace, inputs.sources
    assert sources.text is not None  # noqa: S101 - there is text
    write_alignment(workspace.checkpoint, alignment, identity(sources.clip, workspace.dataset.classes, sources.text))


def describe(quality: Quality) -> str:
    """Describe a measurement in one line: how far apart the classes are."""
    loss = "" if quality.loss is None else f"loss {quality.loss:.3f}, "
    between = "" if quality.between is None else f", between {quality.between:.3f}"
    return (
        f"{loss}temperature {quality.temperature:.3f}, cluster purity {100 * quality.purity:.1f} %, "
        f"distance within classes {quality.within:.3f}{between}"
    )
