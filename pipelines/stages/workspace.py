"""The work directory: what the stages of one dataset share, and where each finds what the one before it wrote."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pipelines.datasets import load_dataset
from pipelines.datasets.base import Dataset
from pipelines.errors import SsrError, UsageError
from pipelines.execution.failures import Failures
from pipelines.execution.progress import Progress
from pipelines.options.sources import ClipOptions, DatasetOptions, DinoOptions, RunOptions
from pipelines.stores.array_store import store_exists
from pipelines.stores.files import read_json, write_json
from pipelines.stores.manifest import Manifest, differences

MEMORY = "work.json"
"""File in which a work directory remembers its dataset, encoders, recipe and config for the commands that follow."""


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

    @cached_property
    def dataset(self) -> Dataset:
        """The work list, read once."""
        return self.photos or load_dataset(self.dataset_options)

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
        now = {
            "dataset": self.dataset_options.model_dump(mode="json"),
            "clip": self.clip.model_dump(mode="json"),
            "dino": self.dino.model_dump(mode="json"),
            "recipe": self.recipe,
            "config": self.config,
        }
        before = recall(self.work)
        if before.get("dataset"):
            changed = [d for d in differences(before["dataset"], now["dataset"]) if d.startswith(("kind", "root"))]
            if changed:
                raise UsageError(f"{self.work} belongs to another dataset ({'; '.join(changed)})", "give another --work")
        if before != now:
            write_json(self.work / MEMORY, now)

    def restore(self, memory: dict[str, Any]) -> None:
        """Put back what the directory remembered before a command that was refused."""
        if memory:
            write_json(self.work / MEMORY, memory)
        else:
            (self.work / MEMORY).unlink(missing_ok=True)

    def failures(self, stage: str, progress: Progress) -> Failures:
        """The failure log of a stage's run."""
        self.work.mkdir(parents=True, exist_ok=True)
        return Failures(self.work / "failures.jsonl", stage, self.run.max_failures, progress)

    def manifest(self, stage: str, settings: dict[str, Any]) -> Manifest:
        """A fresh manifest of a stage over this dataset."""
        dataset = self.dataset
        described = {"kind": dataset.kind, "split": dataset.split, "images": len(dataset.samples), "digest": dataset.digest()}
        return Manifest(stage, settings, described)

    def differs(self, output: Path, settings: dict[str, Any]) -> bool:
        """Whether an output was made with other settings; False if there is none."""
        old = Manifest.read(output.with_suffix(".json"))
        return old is not None and old.settings != settings

    def settle(
        self, output: Path, stage: str, settings: dict[str, Any], clear: Callable[[], None], again: bool = True
    ) -> Manifest:
        """Compare a stage's settings with those that made its output.

        Args:
            output: The store or folder; its manifest lies beside it, with the suffix ``.json``.
            stage: Stage name.
            settings: Whatever changes the output.
            clear: Removes the output; called with ``force``, before the new manifest is written, so that a kill in
                between cannot pair old output with new settings.
            again: With ``force``, clear although the settings are the same.

        Returns:
            The new manifest, already written.

        Raises:
            UsageError: The settings changed and ``force`` is off; the message says which.
        """
        path = output.with_suffix(".json")
        old = Manifest.read(path)
        new = self.manifest(stage, settings)
        changed = differences(old.settings, new.settings) if old is not None else []
        if changed and not self.force:
            shown = "; ".join(changed[:4]) + (f"; and {len(changed) - 4} more" if len(changed) > 4 else "")
            raise UsageError(
                f"{output} was made with other options ({shown})", "--force starts it over, or give another --work"
            )
        if self.force and (again or changed):
            clear()
        new.write(path)
        return new


def recall(work: Path) -> dict[str, Any]:
    """What a work directory remembers; empty if it is new."""
    path = work / MEMORY
    if not path.is_file():
        return {}
    content = read_json(path)
    config = (content.get("config") or {}) if isinstance(content, dict) else None
    sections = [content.get(key) or {} for key in ("dataset", "clip", "dino")] if isinstance(content, dict) else []
    if not isinstance(config, dict) or not all(isinstance(one, dict) for one in (*sections, *config.values())):
        raise SsrError(f"{path} is damaged", "remove it and give DATASET and --root again")
    found: dict[str, Any] = content
    return found


def input_digest(output: Path, command: str) -> str:
    """Digest of the settings that made a stage's input.

    Raises:
        SsrError: The input is not there.
    """
    manifest = Manifest.read(output.with_suffix(".json"))
    if manifest is None or not store_exists(output):  # killed before the first image: a manifest alone
        raise SsrError(f"no {output.stem} in {output.parent}", f"run `{command}` first")
    return manifest.options_digest
