"""`ssr train`: a segmentation decoder on the frozen CLIP, from pseudo-masks that are made while it trains."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path

from torch import Tensor

from pipelines.datasets import load_dataset
from pipelines.execution.devices import peak_memory, resolve_device
from pipelines.execution.progress import Progress, Silent
from pipelines.figures.curves import curves_figure
from pipelines.stages.aligned_readout import identity, write_alignment
from pipelines.stages.counts import Counts
from pipelines.stages.segmenter import Segmenter, write_segmenter
from pipelines.stages.train_inputs import TrainInputs, TrainSections
from pipelines.stages.validation import Validation
from pipelines.stages.workspace import Workspace
from pipelines.stores.files import remove_leftovers
from pipelines.stores.manifest import digest
from pipelines.training.checkpoint import read_checkpoint, write_checkpoint
from pipelines.training.curves import Curves
from pipelines.training.processes import Processes, joined_processes
from pipelines.training.segmentation import SegmentationTrainer, StepLosses

STAGE = "train"
LOG_EVERY = 10
"""Steps that one line of the curves stands for."""

UPPER_BOUND = "trained on ground-truth masks: an upper bound, not a weakly supervised result"


def run(workspace: Workspace, sections: TrainSections, progress: Progress | None = None) -> Counts:
    """Train from where the last run stood and write ``WORK/model.safetensors``.

    Args:
        workspace: Photos and superpixels; with ``supervision`` masks, ground truth too.
        sections: The training, and how its labels are made.
        progress: Told about each step.

    Returns:
        Steps done and skipped, photos failed.

    Raises:
        UsageError: Trained with other options before, and ``workspace.force`` is off; or options that do not fit.
        SsrError: No superpixels although they are asked for.
        TooManyFailures: More bad photos than allowed; what was trained is kept.
    """
    sections = sections.checked(workspace)
    with joined_processes(resolve_device(workspace.run.device)) as (processes, device), ExitStack() as stack:
        inputs = TrainInputs(workspace, sections, device, processes, stack)
        return _Training(inputs, processes, progress or Silent()).run()


class _Training:
    """One run of the training: manifest, state, curves, validation and model around a `SegmentationTrainer`."""

    def __init__(self, inputs: TrainInputs, processes: Processes, progress: Progress) -> None:
        self.inputs, self.workspace, self.options, self.processes = inputs, inputs.workspace, inputs.sections.train, processes
        self.progress = progress if processes.first else Silent()
        self.folder = self.workspace.work / "train"
        self.trainer = SegmentationTrainer(
            inputs.decoder(), self.options, inputs.device, inputs.alignment, processes, inputs.encoder.dtype
        )
        self.validation: Validation | None = None
        if self.options.val_split is not None and processes.first:
            val = load_dataset(self.workspace.dataset_options.model_copy(update={"split": self.options.val_split}))
            self.validation = Validation(val, inputs.encoder)
        self.curves = Curves(self.folder / "curves.jsonl")

    def run(self) -> Counts:
        """Train from where the last run stood."""
        trainer, options, owner = self.trainer, self.options, digest(self.inputs.settings)
        if self.processes.first:
            remove_leftovers(self.folder)
            remove_leftovers(self.workspace.work, self.workspace.model.stem)
            manifest = self.workspace.settle(self.workspace.model, STAGE, self.inputs.settings, self._clear)
        failures = self.workspace.failures(STAGE, self.progress) if self.processes.first else None
        self.processes.wait()
        state = self._saved(owner) if options.resume == "auto" else None
        if state is not None:
            trainer.restore(state)
        self.curves.open(trainer.iteration)
        if options.supervision == "masks":
            self.progress.note(UPPER_BOUND)
        counts, bad = Counts(skipped=trainer.iteration), set[str]()
        self.progress.start("train", options.iterations, trainer.iteration, "steps")
        started, before = time.monotonic(), trainer.iteration
        steps = self.inputs.source.steps(trainer.iteration, self.processes)
        for _, crops, unusable in islice(steps, options.iterations - trainer.iteration):
            for image_id, error in unusable:
                if image_id not in bad:  # it comes again every epoch
                    bad.add(image_id)
                    if failures is not None:
                        failures.add(image_id, error)
            losses = trainer.step(self.inputs.parts(crops))
            self.progress.advance()
            self._log(losses)
            counts.done += 1
            last = trainer.iteration == options.iterations
            if self.validation and (last or (options.validate_every and trainer.iteration % options.validate_every == 0)):
                self._validate(self.validation)
            if last or trainer.iteration % options.save_every == 0:
                self._save(owner)
        self.progress.finish()
        self.processes.wait()
        counts.failed = len(bad)
        if self.processes.first:
            if counts.done:
                seconds = 1000 * (time.monotonic() - started) / (trainer.iteration - before)
                self.progress.status(f"{seconds:.0f} s per 1,000 steps, {peak_memory(trainer.device)}")
            if not self.workspace.model.is_file():
                self._write_model(self.workspace.model)
            manifest.counts, manifest.complete = {"iterations": trainer.iteration, **counts.as_dict()}, True
            manifest.write(self.workspace.model.with_suffix(".json"))
        return counts

    def _log(self, losses: StepLosses) -> None:
        done = self.trainer.iteration
        mean = self.curves.add(asdict(losses), done, done % LOG_EVERY == 0 or done == self.options.iterations)
        if mean is not None and (done % (10 * LOG_EVERY) == 0 or done == self.options.iterations):
            self.progress.status(
                f"loss {mean['segmentation']:.3f}, affinity {mean['affinity']:.3f}, learning rate {mean['learning_rate']:.2e}"
            )

    def _validate(self, validation: Validation) -> None:
        miou = validation.miou(self._segmenter())
        best = miou > max((line["val_miou"] for line in self.curves.lines if "val_miou" in line), default=-1.0)
        self.curves.write({"iteration": self.trainer.iteration, "val_miou": miou})
        self.progress.status(f"mIoU {100 * miou:.2f} on {self.options.val_split} (one scale, no CRF){', best so far' * best}")
        if best:
            self._write_model(self.folder / "best.safetensors")

    def _save(self, owner: str) -> None:
        if self.processes.first:
            self.curves.flush()
            self._write_model(self.workspace.model)
            self._write_heads()
            curves_figure(self.curves.lines, self.folder / "curves.png")
            # last: a training killed before it takes its steps again and writes the others again
            write_checkpoint(self.folder / "state.safetensors", self.trainer.state(), {"owner": owner})

    def _segmenter(self) -> Segmenter:
        names, supervision = self.workspace.dataset.classes.names, self.options.supervision
        decoder = self.trainer.decoder.eval()
        return Segmenter(decoder, self.inputs.token_blocks, names, supervision, self.trainer.iteration)

    def _write_model(self, path: Path) -> None:
        write_segmenter(path, self._segmenter(), self.inputs.weights)

    def _write_heads(self) -> None:
        """Heads that were trained on; those that `ssr align` wrote stay as they are."""
        heads, online, text = self.inputs.heads, self.inputs.alignment, self.inputs.text
        if heads is not None and online is not None and text is not None:
            trained = replace(heads, image_prototypes=online.prototypes.cpu())
            belongs_to = identity(self.inputs.weights, self.workspace.dataset.classes, text)
            write_alignment(self.folder / "cmpa.safetensors", trained, belongs_to)

    def _saved(self, owner: str) -> dict[str, Tensor] | None:
        path = self.folder / "state.safetensors"
        if not path.is_file():
            return None
        tensors, note = read_checkpoint(path, "--resume never")
        return tensors if note.get("owner") == owner else None

    def _clear(self) -> None:
        names = ("state.safetensors", "best.safetensors", "cmpa.safetensors", "curves.jsonl", "curves.png")
        for path in (self.workspace.model, *(self.folder / name for name in names)):
            path.unlink(missing_ok=True)
