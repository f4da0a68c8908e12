"""The work directory: what the stages of one dataset share, and where each finds what the one before it wrote."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock

from pipelines.datasets import load_dataset
from pipelines.datasets.base import Dataset, Sample
from pipelines.datasets.share import Share
from pipelines.errors import UsageError
from pipelines.execution.failures import Failures
from pipelines.execution.interruption import interrupted, refuse_if_interrupted
from pipelines.execution.progress import Progress
from pipelines.options.sources import ClipOptions, DatasetOptions, DinoOptions, RunOptions
from pipelines.stores.array_reader import files_of
from pipelines.stores.array_store import PATIENCE, ArrayReader
from pipelines.stores.files import remove_leftovers
from pipelines.stores.manifest import Manifest, differences, shard_manifests
from pipelines.stores.shard import Shard, own_place
from pipelines.workdir.counts import Counts, ImageTally
from pipelines.workdir.memory import MEMORY, remember
from pipelines.workdir.output import Output, Part

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

    def manifest(self, stage: str, settings: dict[str, Any], place: str | None = None) -> Manifest:
        """A fresh manifest of a stage over this dataset; ``place`` tells where the photos lie."""
        dataset = self.dataset
        described = {"kind": dataset.kind, "split": dataset.split, "images": len(dataset.samples), "digest": dataset.digest()}
        return Manifest(stage, settings, described if place is None else {**described, "place": place})

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
            progress: Told about each image.
            others: More stores, folders and files that are made and started over with it.
            then: What is made from it in the same run, with manifests of their own.
            **details: See `Output`: ``prepare``, ``again``, ``log``, ``place``.

        Raises:
            UsageError: On entering: the settings changed and ``force`` is off; the message says which.
            SsrError: On entering: another process writes there, or a file is damaged.
            Interrupted: On leaving: the run was asked to stop before its end.
        """
        return Output(self, [Part(stage, path, settings, tuple(others)), *then], progress, **details)

    def differs(self, output: Path, settings: dict[str, Any]) -> bool:
        """Whether an output was made with other settings; False if there is none."""
        old = self._settled(output)
        return old is not None and old.settings != settings

    def refuse_changes(self, output: Path, settings: dict[str, Any]) -> None:
        """Refuse settings that `settle` would refuse; nothing is written.

        Raises:
            UsageError: The settings changed and ``force`` is off.
        """
        old = self._settled(output)
        self._refuse(output, differences(old.settings, settings) if old is not None else [])

    def _settled(self, output: Path) -> Manifest | None:
        """The manifest that counts for this run: the shard's own, or that of the whole."""
        whole = output.with_suffix(".json")
        return Manifest.read(own_place(whole, self.shard)) or Manifest.read(whole)

    def settle(
        self,
        output: Path,
        stage: str,
        settings: dict[str, Any],
        clear: Callable[[], None],
        again: bool = True,
        place: str | None = None,
    ) -> Manifest:
        """Compare a stage's settings with those that made its output.

        A shard has a manifest of its own; that of the whole, which the first shard writes, holds the settings of all.

        Args:
            output: The store or folder; its manifest lies beside it, with the suffix ``.json``.
            stage: Stage name.
            settings: Whatever changes the output.
            clear: Removes the output, or this shard's part of it; called with ``force``, before the new manifest is
                written, so that a kill in between cannot pair old output with new settings.
            again: With ``force``, clear although the settings are the same.
            place: What tells where the photos lie, written down with the dataset.

        Returns:
            The new manifest, already written.

        Raises:
            UsageError: The settings changed and ``force`` is off; the message says which.
        """
        whole = output.with_suffix(".json")
        new = self.manifest(stage, settings)
        if place is not None:
            new.dataset["place"] = place
        self._refuse_unknown(output)
        if self.shard is None:
            remove_leftovers(whole.parent, whole.name)
            if self.remembers:
                remove_leftovers(self.work, MEMORY)
            changed = _changed(Manifest.read(whole), new)
            for manifest in shard_manifests(output).values():
                changed = changed or _changed(manifest, new)
            self._start_over(output, changed, clear, again)
            new.write(whole)
            for shard in shard_manifests(output):  # their images become those of the whole
                shard.place(whole).unlink()
            return new
        with self._settling(output):
            own, path = self.shard.place(output), self.shard.place(whole)
            changed = _changed(Manifest.read(path), new) or _changed(Manifest.read(whole), new)
            if changed and self.force and output.suffix == ".h5" and files_of(output):
                raise UsageError(
                    f"{output} was made with other options ({changed[0]}) and is not of one shard alone",
                    f"remove it and {whole.name}, or give another --work",
                )
            self._start_over(own, changed, clear, again)
            new.write(path)
            old = Manifest.read(whole)
            if old is None or changed or old.dataset != new.dataset:
                new.write(whole)
        return new

    def _refuse_unknown(self, output: Path) -> None:
        """A store without a manifest must not become one of other options."""
        if not self.force and output.suffix == ".h5" and files_of(output) and not output.with_suffix(".json").exists():
            raise UsageError(f"{output} has no manifest: what made it is not known", "--force starts it over")

    def _start_over(self, output: Path, changed: list[str], clear: Callable[[], None], again: bool) -> None:
        self._refuse(output, changed)
        if self.remembers:  # not before: the next command must not inherit what was refused
            remember(self)
        if self.force and (again or changed):
            clear()

    def _refuse(self, output: Path, changed: list[str]) -> None:
        if changed and not self.force:
            shown = "; ".join(changed[:4]) + (f"; and {len(changed) - 4} more" if len(changed) > 4 else "")
            raise UsageError(
                f"{output} was made with other options ({shown})", "--force starts it over, or give another --work"
            )

    def _settling(self, output: Path) -> FileLock:
        """The lock under which shards write the manifest of the whole."""
        return FileLock(output.with_name(f".{output.stem}.json.lock"), timeout=PATIENCE)

    def record(self, output: Path, manifest: Manifest, counts: Counts) -> None:
        """Write what a run came to; it is complete unless it was asked to stop."""
        manifest.counts, manifest.complete = counts.as_dict(), not interrupted()
        manifest.write(own_place(output.with_suffix(".json"), self.shard))

    def finish(self, output: Path, manifest: Manifest, counts: Counts) -> None:
        """Like `record`, as the last thing of a run.

        Raises:
            Interrupted: The run was asked to stop before its end.
        """
        self.record(output, manifest, counts)
        refuse_if_interrupted()


def superpixel_reader(workspace: Workspace, used: bool) -> AbstractContextManager[ArrayReader | None]:
    """The store of superpixels, to be opened by ``with``; None unless some option uses them."""
    return ArrayReader(workspace.superpixels) if used else nullcontext()


def _changed(old: Manifest | None, new: Manifest) -> list[str]:
    return [] if old is None else differences(old.settings, new.settings)
