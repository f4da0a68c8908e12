"""The work directory: what the stages of one dataset share, and where each finds what the one before it wrote."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pipelines.datasets import load_dataset
from pipelines.datasets.base import Dataset, Sample
from pipelines.datasets.share import Share
from pipelines.execution.failures import Failures
from pipelines.execution.progress import Progress
from pipelines.options.sources import ClipOptions, DatasetOptions, DinoOptions, RunOptions
from pipelines.stores.array_store import ArrayReader
from pipelines.stores.manifest import Manifest
from pipelines.stores.shard import Shard, own_place
from pipelines.workdir.counts import ImageTally
from pipelines.workdir.output import Output, Part
from pipelines.workdir.record import Record

HEADS_FILE = "cmpa.safetensors"
"""Alignment heads in a work directory."""

REPORTS = "eval"
"""Folder of a work directory, or of a shard, with what `ssr eval` found."""

FAILURES = "failures.jsonl"
"""Bad images of the last run of each stage, in the work directory or the folder of a shard."""


@dataclass(frozen=True)
class Workspace:
    """One work directory and what every stage of it needs.

    Attributes:
        work: The directory.
        dataset_options: The images and labels.
        clip: The frozen CLIP.
        dino: The frozen DINO.
        run: Device, precision, workers, tolerated failures.
        recipe: Name of the recipe in force, or None.
        force: Start a stage over.
        config: Stage options of the config file, by section: remembered, so that later commands need no ``--config``.
        superpixels_work: Another work directory whose superpixels are used; None: its own.
        photos: Photos to work on instead of the dataset's, which is not looked for then.
        shard: The share of the work list to work on; None: all of it.
        remembers: Write down dataset, encoders, recipe and config once a stage has accepted them.
        no_images: Work on none: a stage checks its options, starts over with ``force``, and ends.
    """

    work: Path
    dataset_options: DatasetOptions
    clip: ClipOptions
    dino: DinoOptions
    run: RunOptions
    recipe: str | None = None
    force: bool = False
    config: dict[str, dict[str, Any]] = field(default_factory=dict)
    superpixels_work: Path | None = None
    photos: Dataset | None = None
    shard: Shard | None = None
    remembers: bool = False
    no_images: bool = False

    @cached_property
    def dataset(self) -> Dataset:
        """The work list, read once."""
        return self.photos or load_dataset(self.dataset_options)

    @cached_property
    def samples(self) -> Collection[Sample]:
        """The images of this share, in the order of the work list."""
        samples: Collection[Sample] = () if self.no_images else self.dataset.samples
        return samples if self.shard is None else Share(samples, self.shard)

    @property
    def superpixels(self) -> Path:
        """Store of superpixels, ``(H, W)`` uint16 an image."""
        return (self.superpixels_work or self.work) / "superpixels.h5"

    @property
    def checkpoint(self) -> Path:
        """Alignment heads."""
        return self.work / HEADS_FILE

    def heads(self, ckpt: Path | None) -> Path | None:
        """What ``--ckpt`` means: ``auto`` is this directory's own `checkpoint`, unless a file of that name is there."""
        own = ckpt is not None and ckpt.name == "auto" and not ckpt.exists()
        return self.checkpoint if own else ckpt

    @property
    def tag_scores(self) -> Path:
        """Store of the scores of all classes, ``(C,)`` fp32 an image."""
        return self.work / "tag_scores.h5"

    @property
    def tags(self) -> Path:
        """Label file of the classes whose scores reach their thresholds."""
        return self.work / "tags.csv"

    @property
    def thresholds(self) -> Path:
        """The thresholds behind `tags`, and what is expected of them."""
        return self.work / "thresholds.json"

    @property
    def cams(self) -> Path:
        """Store of initial CAMs, ``(K, h, w)`` fp16 an image."""
        return self.work / "cams.h5"

    @property
    def refined(self) -> Path:
        """Store of refined CAMs, ``(K, h, w)`` fp16 an image."""
        return self.work / "refined.h5"

    @property
    def masks(self) -> Path:
        """Folder of pseudo-masks, palette PNGs."""
        return self.work / "masks"

    @property
    def corrected(self) -> Path:
        """Folder of label maps that people corrected, palette PNGs."""
        return self.work / "corrected"

    @property
    def model(self) -> Path:
        """Segmentation model of the last step."""
        return self.work / "model.safetensors"

    @property
    def predictions(self) -> Path:
        """Folder of folders of predicted label maps."""
        return self.work / "predictions"

    @property
    def retrained(self) -> Path:
        """Network of `ssr retrain`; its label maps lie in the folder of the same name."""
        return self.work / "retrained.safetensors"

    def failures(self, stage: str, progress: Progress) -> Failures:
        """The failure log of a stage's run."""
        path = own_place(self.work / FAILURES, self.shard)
        path.parent.mkdir(parents=True, exist_ok=True)
        return Failures(path, stage, self.run.max_failures, progress)

    def tally(self, stage: str, progress: Progress) -> ImageTally:
        """Counts the images of a run that makes no `output`."""
        return ImageTally(self.failures(stage, progress), progress)

    def manifest(self, stage: str, settings: dict[str, Any], place: Mapping[str, str] | None = None) -> Manifest:
        """A fresh manifest of a stage over this dataset; ``place`` tells where the photos lie."""
        dataset = self.dataset
        described = {"kind": dataset.kind, "split": dataset.split, "images": len(dataset.samples), "digest": dataset.digest()}
        described |= {"labels": "tags"} if dataset.tagged else {}
        return Manifest(stage, settings, described | dict(place or {}))

    def output(
        self,
        stage: str,
        path: Path,
        settings: Mapping[str, Any],
        progress: Progress,
        *,
        others: Sequence[Path] = (),
        then: Sequence[Part] = (),
        **details: Any,
    ) -> Output:
        """What a stage makes, to be opened by ``with``: other settings are refused or, with ``force``, started over.

        At the end, the manifest is recorded as complete unless the run was asked to stop.

        Args:
            stage: Stage name.
            path: A store (``.h5``), a folder of label maps (no suffix) or a file; its manifest lies beside it (``.json``).
            settings: Whatever changes it.
            progress: Receives each image.
            others: More stores, folders and files that are made and started over with it.
            then: What is made from it in the same run, with manifests of their own.
            **details: See `Output`: ``prepare``, ``again``, ``log``, ``place``.

        Raises:
            UsageError: On entering: the settings changed and ``force`` is off; the message says which.
            SsrError: On entering: another process writes there, or a file is damaged.
            Interrupted: On leaving: the run was asked to stop before its end.
        """
        return Output(self, [Part(stage, path, settings, tuple(others)), *then], progress, **details)

    def differs(self, output: Path, settings: Mapping[str, Any]) -> bool:
        """Whether an output was made with other settings; False if there is none. Nothing is written."""
        record = Record(output, self.manifest("", dict(settings)), self.shard)
        record.compare()
        return bool(record.changed)


def superpixel_reader(workspace: Workspace, used: bool) -> AbstractContextManager[ArrayReader | None]:
    """The store of superpixels, to be opened by ``with``; None unless some option uses them."""
    return ArrayReader(workspace.superpixels) if used else nullcontext()


def oriented(workspace: Workspace) -> dict[str, Any]:
    """The setting that photos are turned; nothing where they are not, as in work directories from before."""
    return {"orient": True} if workspace.dataset_options.orient else {}
