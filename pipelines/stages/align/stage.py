"""`ssr align`: CMPA. Two heads learn to bring a class's patches and its name together, from image-level labels alone."""

from __future__ import annotations

import time
from dataclasses import asdict

import torch
from torch import Tensor

from pipelines.encoders.class_embeddings import TextEmbeddings
from pipelines.errors import SsrError, UsageError
from pipelines.execution.devices import peak_memory, resolve_device, resolve_dtype
from pipelines.execution.interruption import interrupted, refuse_interrupted
from pipelines.execution.progress import Progress, Silent
from pipelines.method.loading import FrozenModels
from pipelines.models.alignment_file import Alignment, identity, write_alignment
from pipelines.options.align import AlignOptions
from pipelines.options.stages import CamsOptions, RefineOptions
from pipelines.stages.align.inputs import AlignInputs, needs_of
from pipelines.stores.checkpoint import read_checkpoint, write_checkpoint
from pipelines.stores.files import read_json, remove_leftovers, write_json
from pipelines.stores.manifest import digest
from pipelines.training.alignment import AlignmentTrainer, Quality
from pipelines.training.processes import Processes, joined_processes
from pipelines.workdir.counts import Counts
from pipelines.workdir.settings import model_sources
from pipelines.workdir.workspace import Workspace

STAGE = "align"
SAVE_EVERY = 500
"""Steps between two saves of the state; refreshes save it too."""


def run(
    workspace: Workspace,
    options: AlignOptions,
    cams: CamsOptions,
    refine: RefineOptions,
    progress: Progress | None = None,
) -> Counts:
    """Collect patches of every photo, train the heads, write ``WORK/cmpa.safetensors``.

    Args:
        workspace: Photos and superpixels.
        options: The training.
        cams: Plain CLIP's read-out, whose CAMs pool the features; one scale, no mirror image.
        refine: How these CAMs are refined first, if ``options.cam`` asks for it.
        progress: Told about photos, then about steps.

    Returns:
        Photos done, skipped and failed.

    Raises:
        UsageError: Made with other options before, and ``workspace.force`` is off; or nothing to contrast with.
        SsrError: No superpixels although they are asked for, or no photo has a class.
        TooManyFailures: More bad images than allowed; what was computed is kept.
    """
    progress = progress or Silent()
    plain = cams.model_copy(update={"ckpt": None, "scales": (1.0,), "flip": False})
    inputs = AlignInputs(workspace, options, plain, refine, model_sources(workspace, needs_of(options, plain, refine)))
    with joined_processes(resolve_device(workspace.run.device)) as (processes, device):
        models = FrozenModels(inputs.sources, device, resolve_dtype(workspace.run.precision, device))
        text = models.embeddings
        if text is None or len(text.all) < 2:
            raise UsageError("one class and no background words: nothing to tell apart", "--classes, --background-bank")
        counts = Counts()
        if processes.first:
            counts = inputs.collect(models, progress)
        processes.wait()
        del models  # the heads need its memory more
        training = _Training(inputs, text, device, processes, progress if processes.first else Silent())
        training.run()
        processes.wait()
    return counts


class _Training:
    """One run of the training: manifest, state, metrics and checkpoint around an `AlignmentTrainer`."""

    def __init__(
        self, inputs: AlignInputs, text: TextEmbeddings, device: torch.device, processes: Processes, progress: Progress
    ) -> None:
        self.inputs, self.workspace, self.options = inputs, inputs.workspace, inputs.options
        self.text, self.processes, self.progress = text, processes, progress
        self.checkpoint = self.workspace.checkpoint
        self.state = self.workspace.work / "align" / "state.safetensors"
        self.metrics = self.workspace.work / "align" / "metrics.json"
        self.data = inputs.data()
        self.trainer = AlignmentTrainer(self.data, text.all, len(text.classes), self.options, device, processes)
        self.qualities: list[dict[str, float]] = []

    def run(self) -> None:
        """Train from where the last run stood."""
        settings = {
            **self.options.model_dump(mode="json", exclude={"resume"}),
            "inputs": digest(self.inputs.settings()),
            "photos": digest(
                [[image_id, list(own)] for image_id, own in zip(self.data.image_ids, self.data.labels, strict=True)]
            ),
            "processes": self.processes.count,
        }
        if self.processes.first:
            remove_leftovers(self.state.parent)
            remove_leftovers(self.workspace.work, self.checkpoint.stem)
            manifest = self.workspace.settle(self.checkpoint, STAGE, settings, self._clear)
        self.processes.wait()
        trainer, options, owner = self.trainer, self.options, digest(settings)
        tensors = self._saved(owner) if options.resume == "auto" else None
        if tensors is not None:
            trainer.restore(tensors)
            self.qualities = self._history()
        self.progress.start("align", trainer.iterations, trainer.iteration, "steps")
        if trainer.iteration == 0:
            trainer.refresh()
            self._measure()
        started, before = time.monotonic(), trainer.iteration
        for _ in trainer.steps():
            self.progress.advance()
            if trainer.iteration % trainer.refresh_every == 0 or trainer.iteration == trainer.iterations:
                self._measure()
                self._save(owner)
            elif trainer.iteration % SAVE_EVERY == 0:
                self._save(owner)
            if self.processes.any(interrupted()):  # at one step, all of them
                self._save(owner)
                refuse_interrupted()
        self.progress.finish()
        if not self.processes.first:
            return
        if trainer.iteration > before:
            seconds = 1000 * (time.monotonic() - started) / (trainer.iteration - before)
            self.progress.status(f"{seconds:.0f} s per 1,000 steps, {peak_memory(self.trainer.device)}")
        if trainer.iteration > before or not self.checkpoint.is_file():
            self._write_checkpoint()
        manifest.counts, manifest.complete = {"iterations": trainer.iteration, "photos": len(self.data)}, True
        manifest.write(self.checkpoint.with_suffix(".json"))

    def _clear(self) -> None:
        for path in (self.checkpoint, self.state, self.metrics):
            path.unlink(missing_ok=True)

    def _saved(self, owner: str) -> dict[str, Tensor] | None:
        if not self.state.is_file() or not self.metrics.is_file():  # a history that is gone is made by training anew
            return None
        tensors, note = read_checkpoint(self.state, "--resume never")
        return tensors if note.get("owner") == owner else None

    def _history(self) -> list[dict[str, float]]:
        found: list[dict[str, float]] = read_json(self.metrics)
        sound = isinstance(found, list) and all(isinstance(q, dict) and isinstance(q.get("iteration"), int) for q in found)
        if not sound:
            raise SsrError(f"{self.metrics} is damaged", "remove the file and run its stage again")
        return found

    def _save(self, owner: str) -> None:
        if self.processes.first:
            write_checkpoint(self.state, self.trainer.state(), {"owner": owner})

    def _measure(self) -> None:
        quality = self.trainer.quality()
        if self.processes.first:
            self.qualities = [q for q in self.qualities if q["iteration"] < quality.iteration] + [asdict(quality)]
            write_json(self.metrics, self.qualities)
            self.progress.status(describe(quality))

    def _write_checkpoint(self) -> None:
        trainer = self.trainer
        photos = torch.bincount(self.data.classes, minlength=len(self.text.classes))
        precision = trainer.average_precision()
        heads = trainer.heads.cpu().eval()
        alignment = Alignment(heads, self.options.features, photos, precision, trainer.prototypes.image.cpu())
        belongs_to = identity(self.inputs.sources.clip, self.workspace.dataset.classes, self.text)
        write_alignment(self.checkpoint, alignment, belongs_to)


def describe(quality: Quality) -> str:
    """One line for a person: how far the classes have come apart."""
    loss = "" if quality.loss is None else f"loss {quality.loss:.3f}, "
    between = "" if quality.between is None else f", between {quality.between:.3f}"
    return (
        f"{loss}temperature {quality.temperature:.3f}, cluster purity {100 * quality.purity:.1f} %, "
        f"distance within classes {quality.within:.3f}{between}"
    )
