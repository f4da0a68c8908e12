"""`ssr train`: a segmentation decoder on the frozen CLIP, from pseudo-masks that are made while it trains."""

from __future__ import annotations

import math
import time
from contextlib import ExitStack
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path

from torch import Tensor

from pipelines.datasets import load_dataset
from pipelines.errors import ImageError, SsrError, TooManyFailures
from pipelines.execution.devices import peak_memory, resolve_device
from pipelines.execution.failures import Failures
from pipelines.execution.interruption import interrupted, refuse_interrupted
from pipelines.execution.progress import Progress, Silent
from pipelines.figures.curves import curves_figure
from pipelines.models.alignment_file import identity, write_alignment
from pipelines.models.segmenter import UPPER_BOUND, Segmenter, write_segmenter
from pipelines.stages.train.inputs import TrainInputs, TrainSections
from pipelines.stages.train.validation import Validation
from pipelines.stores.checkpoint import read_checkpoint, write_checkpoint
from pipelines.stores.files import remove_leftovers
from pipelines.stores.manifest import Manifest, digest
from pipelines.stores.one_writer import one_writer
from pipelines.training.curves import Curves, Line
from pipelines.training.processes import Processes, joined_processes
from pipelines.training.segmentation import SegmentationTrainer, StepLosses
from pipelines.workdir.counts import Counts
from pipelines.workdir.workspace import Workspace

STAGE = "train"
LOG_EVERY = 10
"""Steps that one line of the curves stands for."""


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
        self._unusable: set[str] = set()

    def run(self) -> Counts:
        """Train from where the last run stood."""
        if not self.processes.first:
            return self._train(None)
        with one_writer(self.folder, "training"):
            remove_leftovers(self.workspace.work, self.workspace.model.stem)
            manifest = self.workspace.settle(self.workspace.model, STAGE, self.inputs.settings, self._clear)
            if self.options.resume == "never":
                self._clear()
            return self._train(manifest)

    def _train(self, manifest: Manifest | None) -> Counts:
        trainer, options = self.trainer, self.options
        failures = self.workspace.failures(STAGE, self.progress) if manifest is not None else None
        self.processes.wait()
        waiting: list[Line] = []
        if options.resume == "auto" and (saved := self._saved()) is not None:
            state, waiting = saved
            trainer.restore(state)
        self.curves.open(trainer.iteration, waiting)
        if options.supervision == "masks":
            self.progress.note(UPPER_BOUND)
        counts, before, started = Counts(skipped=trainer.iteration), trainer.iteration, time.monotonic()
        self.progress.start("train", options.iterations, before, "steps")
        steps = self.inputs.source.steps(before, self.processes)
        for _, crops, unusable in islice(steps, options.iterations - before):
            losses = trainer.step(self.inputs.parts(crops), self.inputs.pieces)
            counts.done += 1
            self._note_unusable(unusable, failures)
            last = trainer.iteration == options.iterations
            stop = self.processes.any(interrupted())  # at one step, all of them
            due = last or trainer.iteration % options.save_every == 0
            self.progress.advance()
            self._log(losses, end=due)
            if options.validate_every and trainer.iteration % options.validate_every == 0 and not last:
                self._validate()
            if due or stop:
                self._save(manifest)
            if stop and not last:
                refuse_interrupted()
        self._validate()
        self.progress.finish()
        self.processes.wait()
        counts.failed = len(self._unusable)
        if manifest is not None:
            if counts.done:
                seconds = 1000 * (time.monotonic() - started) / counts.done
                self.progress.status(f"{seconds:.0f} s per 1,000 steps, {peak_memory(trainer.device)}")
            if not self.workspace.model.is_file():
                self._write_model(self.workspace.model)
            manifest.counts, manifest.complete = {"iterations": trainer.iteration, **counts.as_dict()}, True
            manifest.write(self.workspace.model.with_suffix(".json"))
        return counts

    def _note_unusable(self, photos: list[tuple[str, ImageError]], failures: Failures | None) -> None:
        """Count bad photos once, those of all processes: all stop alike if they are too many."""
        fresh = [(image_id, e.message, e.hint) for image_id, e in photos if image_id not in self._unusable]  # one an epoch
        for image_id, message, hint in self.processes.gather(fresh):
            if image_id not in self._unusable:
                self._unusable.add(image_id)
                if failures is not None:
                    failures.add(image_id, ImageError(message, hint))
                elif 0 <= self.workspace.run.max_failures < len(self._unusable):
                    raise TooManyFailures(f"stopped at bad image {len(self._unusable)}: {image_id}: {message}")

    def _log(self, losses: StepLosses, *, end: bool) -> None:
        done = self.trainer.iteration
        if not math.isfinite(losses.segmentation + losses.affinity + losses.prototype):
            raise SsrError(f"the loss of step {done} is not a number", "a lower --learning-rate, and --force to start over")
        mean = self.curves.add(asdict(losses), done, end=end or done % LOG_EVERY == 0)
        if mean is not None and (done % (10 * LOG_EVERY) == 0 or done == self.options.iterations):
            affinity = f", affinity {mean['affinity']:.3f}" if self.options.affinity_loss else ""
            prototype = f", L_proto {mean['prototype']:.3f}" if self.options.train_heads else ""
            rate = f", learning rate {mean['learning_rate']:.2e}"
            self.progress.status(f"loss {mean['segmentation']:.3f}{affinity}{prototype}{rate}")

    def _validate(self) -> None:
        """Score the decoder as it is, unless this was done; after a bad photo the training can be gone on with."""
        split, iteration = self.options.val_split, self.trainer.iteration
        before = [line for line in self.curves.lines if line.get("val_split") == split]
        if self.validation is None or any(line["iteration"] == iteration for line in before):
            return
        miou = self.validation.miou(self._segmenter())
        best = miou > max((float(line["val_miou"]) for line in before), default=-1.0)
        if best:  # before its score is known: a training killed in between scores it again
            self._write_model(self.folder / "best.safetensors")
        self.curves.write({"iteration": iteration, "val_miou": miou, "val_split": str(split)})
        self._write_curves()
        self.progress.status(f"mIoU {100 * miou:.2f} on {split} (one scale, no CRF){', best so far' * best}")

    def _save(self, manifest: Manifest | None) -> None:
        if manifest is None:
            return
        self._write_curves()
        self._write_model(self.workspace.model)
        self._write_heads()
        # last: a training killed before it takes its steps again and writes the others again
        note = {"owner": digest(self.inputs.settings), "waiting": self.curves.waiting}
        write_checkpoint(self.folder / "state.safetensors", self.trainer.state(), note)
        manifest.counts = {"iterations": self.trainer.iteration}
        manifest.write(self.workspace.model.with_suffix(".json"))

    def _write_curves(self) -> None:
        curves_figure(self.curves.lines, self.folder / "curves.png")
        self.curves.flush()  # last: a validation that stands there is not drawn again

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

    def _saved(self) -> tuple[dict[str, Tensor], list[Line]] | None:
        """The state, and the steps whose means are not in the curves yet."""
        path = self.folder / "state.safetensors"
        if not path.is_file():
            return None
        tensors, note = read_checkpoint(path, "--resume never")
        if note.get("owner") != digest(self.inputs.settings):
            return None
        return tensors, note.get("waiting", [])

    def _clear(self) -> None:
        names = ("state.safetensors", "best.safetensors", "cmpa.safetensors", "curves.jsonl", "curves.png")
        for path in (self.workspace.model, *(self.folder / name for name in names)):
            path.unlink(missing_ok=True)
