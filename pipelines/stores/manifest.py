"""Manifests, which record what made an output: options, inputs, weights, versions, counts.

A manifest is stored beside each output (``cams.json`` beside ``cams.h5``). Its `settings` decide whether a later run may
continue: if any of them differ, the output was made by another recipe.
"""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pipelines.errors import SsrError, UsageError
from pipelines.stores.files import read_json, write_json
from pipelines.stores.shard import Shard, shard_folders

WORK_FILE = "work.json"
"""File in which a work directory stores its dataset, encoders, recipe and config for later commands."""
EXPORT_FILE = "export.json"
"""Manifest in the folder of an export, which marks the folder as one."""
MAX_BYTES = 1 << 20
"""Size above which `holds_outputs` takes a JSON file for no manifest, because annotations may have hundreds of MB."""
PACKAGES = ("ssr-wsss", "torch", "open_clip_torch", "timm", "scikit-image", "numpy", "h5py", "pillow", "pydensecrf2")


def digest(settings: Any) -> str:
    """Return a short SHA-256 of any JSON value, independent of key order."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


@dataclass
class Manifest:
    """The origin of one output.

    Attributes:
        stage: Stage name.
        settings: All settings that change the output: options, weights, class names, digests of the inputs' settings.
        dataset: Kind, split, number of images and digest of the work list.
        counts: Numbers of images done, skipped and failed in the last run.
        complete: Whether the last run reached its end.
        versions: Versions of the packages that compute.
        commit: Git commit of the toolkit, if it runs from a checkout.
        updated: UTC time of the last change.
        created: UTC time at which the output was begun.
    """

    stage: str
    settings: dict[str, Any]
    dataset: dict[str, Any]
    counts: dict[str, int] = field(default_factory=dict)
    complete: bool = False
    versions: dict[str, str] = field(default_factory=dict)
    commit: str | None = None
    updated: str = ""
    created: str = ""

    @property
    def options_digest(self) -> str:
        """Digest of the settings; equal digests mean equal outputs."""
        return digest(self.settings)

    def write(self, path: Path) -> None:
        """Add versions and times, and write the manifest atomically."""
        self.versions = package_versions()
        self.commit = git_commit()
        self.updated = datetime.now(UTC).isoformat(timespec="seconds")
        self.created = self.created or self.updated
        write_json(path, {**asdict(self), "options_digest": self.options_digest})

    @classmethod
    def read(cls, path: Path) -> Manifest | None:
        """Read a manifest; None if there is none."""
        if not path.is_file():
            return None
        cure = "remove it and run its stage again with --force"
        try:
            content = read_json(path)
        except SsrError as error:
            raise SsrError(error.message, cure) from error
        names = cls.__dataclass_fields__
        tables = ("settings", "dataset", "counts")
        if (
            not isinstance(content, dict)
            or not {"stage", "settings", "dataset"} <= content.keys()
            or not all(isinstance(content.get(key, {}), dict) for key in tables)
            or not all(isinstance(content.get(key, ""), str) for key in ("updated", "created"))
        ):
            raise UsageError(f"{path} is not a manifest", cure)
        if content.get("options_digest", found := digest(content["settings"])) != found:
            raise UsageError(f"{path} is damaged: its settings are not those of its digest", cure)
        return cls(**{key: value for key, value in content.items() if key in names})


def holds_outputs(folder: Path) -> bool:
    """Return whether commands wrote a folder: a work directory, an export, or label maps with their manifest beside them."""
    if any((folder / name).is_file() for name in (WORK_FILE, EXPORT_FILE)):
        return True
    beside = folder.with_suffix(".json")
    try:
        return beside.is_file() and beside.stat().st_size <= MAX_BYTES and Manifest.read(beside) is not None
    except SsrError:  # the file is of something else
        return False


def read_manifest(output: Path) -> Manifest | None:
    """Read the manifest of an output, or of all its shards together: their counts are added; complete if each shard is.

    If the output was complete before some shards were made again, its own counts are kept.

    Raises:
        UsageError: A file is not a manifest, or a shard was made with other settings than the whole.
    """
    path = output.with_suffix(".json")
    whole = Manifest.read(path)
    shards = shard_manifests(output)
    if whole is None or not shards:
        return whole
    for shard, manifest in shards.items():
        changed = differences(whole.settings, manifest.settings)
        if changed:
            raise UsageError(f"shard {shard} of {output} was made with other options ({changed[0]})", "--force starts it over")
    of_shards = [manifest.counts for manifest in shards.values()]
    added = {key: sum(int(each.get(key, 0)) for each in of_shards) for key in sorted(set().union(*of_shards))}
    whole_list = {shard.index for shard in shards} == set(range(next(iter(shards)).count))
    complete = whole_list and all(manifest.complete for manifest in shards.values())
    newest = max(shards.values(), key=lambda manifest: manifest.updated)
    before = whole.complete and whole.dataset == newest.dataset  # and some shards were made again
    counts = whole.counts if before and not whole_list else added
    return replace(whole, dataset=newest.dataset, counts=counts, complete=complete or before, updated=newest.updated)


def shard_manifests(output: Path) -> dict[Shard, Manifest]:
    """Return the manifests that shards have written beside an output's own."""
    name = output.with_suffix(".json").name
    found = {shard: Manifest.read(folder / name) for shard, folder in shard_folders(output.parent)}
    return {shard: manifest for shard, manifest in found.items() if manifest is not None}


def differences(old: Any, new: Any, prefix: str = "") -> list[str]:
    """Return the leaves that differ, as ``key: old -> new``, sorted."""
    if isinstance(old, dict) and isinstance(new, dict):
        lines: list[str] = []
        for key in sorted(old.keys() | new.keys()):
            lines += differences(old.get(key), new.get(key), f"{prefix}.{key}" if prefix else str(key))
        return lines
    return [] if old == new else [f"{prefix}: {_short(old)} -> {_short(new)}"]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def package_versions() -> dict[str, str]:
    """Return the versions of the packages that compute, and of Python."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def git_commit() -> str | None:
    """Return the commit of the checkout that contains this file, or None outside a checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(root), "rev-parse", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout.strip()  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
