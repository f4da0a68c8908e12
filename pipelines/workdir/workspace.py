"""The work directory: settings that the stages of one dataset share, and the paths of their outputs."""

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
"""File of the alignment heads in a work directory."""

REPORTS = "eval"
"""Folder of a work directory, or of a shard, with the reports of `ssr eval`."""

PREDICTED = ("predictions", "retrained")
"""Folders of a work directory that hold one folder of label maps per split."""

FAILURES = "failures.jsonl"
"""Log of the bad images of the last run of each stage, in the work directory or the folder of a shard."""


@dataclass(frozen=True)
class Workspace:
    """One work directory, with everything that its stages need.

    Attributes:
        work: The directory.
        dataset_options: Options of the images and labels.
        clip: Options of the frozen CLIP.
        dino: Options of the frozen DINO.
        run: Device, precision, workers, number of allowed failures.
        recipe: Name of the recipe in use, or None.
        force: Whether a stage starts over.
        config: Stage options of the config file, by section; they are stored, so that later commands need no ``--config``.
        superpixels_work: Another work directory whose superpixels are used; None: this one.
        photos: Images to use instead of the dataset's images, which are then not listed.
        shard: Shard of the work list; None: all of it.
        remembers: Whether dataset, encoders, recipe and config are stored after a stage has accepted them.
        no_images: Whether the work list is empty: a stage then checks its options, starts over with ``force``, and ends.
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
        """Store of superpixels, ``(H, W)`` uint16 per image."""
        return (self.superpixels_work or self.work) / "superpixels.h5"

    @property
    def checkpoint(self) -> Path:
        """File of the alignment heads."""
        return self.work / HEADS_FILE

    def heads(self, ckpt: Path | None) -> Path | None:
        """Return the file of ``--ckpt``: ``auto`` is this directory's own `checkpoint`, unless a file has that name."""
        own = ckpt is not None and ckpt.name == "auto" and not ckpt.exists()
        return self.checkpoint if own else ckpt

    @property
    def tag_scores(self) -> Path:
        """Store of the scores of all classes, ``(C,)`` fp32 per image."""
        return self.work / "tag_scores.h5"

    @property
    def tags(self) -> Path:
        """Label file of the classes whose scores reach their thresholds."""
        return self.work / "tags.csv"

    @property
    def thresholds(self) -> Path:
        """File of the thresholds behind `tags`, and of the quality that is expected of them."""
        return self.work / "thresholds.json"

    @property
    def cams(self) -> Path:
        """Store of initial CAMs, ``(K, h, w)`` fp16 per image."""
        return self.work / "cams.h5"

    @property
    def refined(self) -> Path:
        """Store of refined CAMs, ``(K, h, w)`` fp16 per image."""
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
        """File of the segmentation model of the last step."""
        return self.work / "model.safetensors"

    @property
    def predictions(self) -> Path:
        """Folder of folders of predicted label maps."""
        return self.work / "predictions"

    @property
    def retrained(self) -> Path:
        """File of the network of `ssr retrain`; its label maps are in the folder of the same name."""
        return self.work / "retrained.safetensors"

    def failures(self, stage: str, progress: Progress) -> Failures:
        """Return the failure log of a stage's run."""
        path = own_place(self.work / FAILURES, self.shard)
        path.parent.mkdir(parents=True, exist_ok=True)
        return Failures(path, stage, self.run.max_failures, progress)

    def tally(self, stage: str, progress: Progress) -> ImageTally:
        """Return a counter of the images of a run that makes no `output`."""
        return ImageTally(self.failures(stage, progress), progress)

    def manifest(self, stage: str, settings: dict[str, Any], place: Mapping[str, str] | None = None) -> Manifest:
        """Return a new manifest of a stage on this dataset; ``place`` identifies the folder of the images."""
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
        """Return a stage's output as a context manager, which refuses other settings or, with ``force``, starts over.

        At the end, the manifest is recorded as complete unless the run was told to stop.

        Args:
            stage: Stage name.
            path: A store (``.h5``), a folder of label maps (no suffix) or a file; its manifest is beside it (``.json``).
            settings: All settings that change it.
            progress: Receives each image.
            others: Further stores, folders and files that are made and started over with it.
            then: Parts that are made from it in the same run, with manifests of their own.
            **details: See `Output`: ``prepare``, ``again``, ``log``, ``place``.

        Raises:
            UsageError: On entering: the settings changed and ``force`` is off; the message names them.
            SsrError: On entering: another process writes there, or a file is damaged.
            Interrupted: On leaving: the run was told to stop before its end.
        """
        return Output(self, [Part(stage, path, settings, tuple(others)), *then], progress, **details)

    def differs(self, output: Path, settings: Mapping[str, Any]) -> bool:
        """Return whether an output was made with other settings; False if there is none. Nothing is written."""
        record = Record(output, self.manifest("", dict(settings)), self.shard)
        record.compare()
        return bool(record.changed)


def folder_name(images: str) -> str:
    """Return the name of the folder of predictions of a split or folder of images; a dot would look like a file's suffix."""
    return images.replace(".", "_") or "photos"


def superpixel_reader(workspace: Workspace, used: bool) -> AbstractContextManager[ArrayReader | None]:
    """Return the store of superpixels as a context manager; None unless some option uses them."""
    return ArrayReader(workspace.superpixels) if used else nullcontext()


def oriented(workspace: Workspace) -> dict[str, Any]:
    """Return the setting that images are turned; empty if they are not, as in work directories of earlier versions."""
    return {"orient": True} if workspace.dataset_options.orient else {}
