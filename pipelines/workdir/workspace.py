"""The work directory: what the stages of one dataset share, and where each finds what the one before it wrote."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import ExitStack
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
from pipelines.stores.array_store import PATIENCE, ArrayReader, ArrayWriter, store_exists
from pipelines.stores.files import remove_leftovers, write_json
from pipelines.stores.manifest import Manifest, differences, shard_manifests
from pipelines.stores.shard import Shard, own_place
from pipelines.workdir.counts import Counts
from pipelines.workdir.memory import MEMORY, recall

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
        return self.work / "cmpa.safetensors"

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

    def remember(self) -> None:
        """Write down dataset, encoders, recipe and config; refuse a directory that belongs to another dataset.

        Raises:
            UsageError: The directory was made for other images.
        """
        self.refuse_other_dataset()
        now = {
            "dataset": self.dataset_options.model_dump(mode="json"),
            "clip": self.clip.model_dump(mode="json"),
            "dino": self.dino.model_dump(mode="json"),
            "recipe": self.recipe,
            "config": self.config,
        }
        if recall(self.work) != now:
            write_json(self.work / MEMORY, now)

    def refuse_other_dataset(self) -> None:
        """Compare the dataset with the one that the directory remembers.

        Raises:
            UsageError: The directory was made for other images.
        """
        before = recall(self.work).get("dataset")
        changed = differences(before, self.dataset_options.model_dump(mode="json")) if before else []
        changed = [change for change in changed if change.startswith(("kind", "root"))]
        if changed:
            raise UsageError(f"{self.work} belongs to another dataset ({'; '.join(changed)})", "give another --work")

    def failures(self, stage: str, progress: Progress) -> Failures:
        """The failure log of a stage's run."""
        path = own_place(self.work / FAILURES, self.shard)
        path.parent.mkdir(parents=True, exist_ok=True)
        return Failures(path, stage, self.run.max_failures, progress)

    def writer(self, store: Path) -> ArrayWriter:
        """The writer of a store, or of this shard of it."""
        return ArrayWriter(store, shard=self.shard)

    def committed(self, store: Path, stack: ExitStack) -> ArrayReader | tuple[()]:
        """What a store holds already, as far as it counts for this run; ask after `settle`.

        Args:
            store: The main file; with ``force``, a shard counts its own images alone.
            stack: Closes the reader.
        """
        if self.shard is not None and self.force:
            return stack.enter_context(ArrayReader(store, self.shard)) if files_of(self.shard.place(store)) else ()
        return stack.enter_context(ArrayReader(store)) if store_exists(store) else ()

    def manifest(self, stage: str, settings: dict[str, Any]) -> Manifest:
        """A fresh manifest of a stage over this dataset."""
        dataset = self.dataset
        described = {"kind": dataset.kind, "split": dataset.split, "images": len(dataset.samples), "digest": dataset.digest()}
        return Manifest(stage, settings, described)

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
            self.remember()
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


def has_labels(committed: ArrayReader | tuple[()], sample: Sample) -> bool:
    """Whether a store holds an image, made of the labels that it has now."""
    if sample.image_id not in committed or not isinstance(committed, ArrayReader):
        return False
    return bool(committed.attributes(sample.image_id).get("labels") == list(sample.labels))


def _changed(old: Manifest | None, new: Manifest) -> list[str]:
    return [] if old is None else differences(old.settings, new.settings)
