"""The manifest of one output during a run, which is compared with the existing one and written when the output changes."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from filelock import FileLock

from pipelines.errors import UsageError
from pipelines.stores.array_reader import files_of
from pipelines.stores.array_store import PATIENCE
from pipelines.stores.files import remove_leftovers
from pipelines.stores.manifest import Manifest, differences, shard_manifests
from pipelines.stores.shard import Shard, own_place


class Record:
    """The manifest that a run writes.

    A shard has its own manifest. The manifest of the whole, which the first shard writes, holds the settings of all.

    Args:
        output: The store, folder or file; its manifest is beside it, with the suffix ``.json``.
        manifest: Stage, settings and dataset of this run.
        shard: Shard of the run, or None.

    Attributes:
        changed: Settings that differ from those that made the output, one line each.
        finished: Whether the output is complete and was made from the same settings and images.
        written: Whether this run has written its manifest.
    """

    def __init__(self, output: Path, manifest: Manifest, shard: Shard | None) -> None:
        self.output, self.manifest, self.shard = output, manifest, shard
        self.changed: list[str] = []
        self.finished = self.written = False
        self._whole = output.with_suffix(".json")
        self._of_whole: Manifest | None = None

    def compare(self) -> None:
        """Read the existing manifests, and set `changed` and `finished`."""
        new, whole = self.manifest, Manifest.read(self._whole)
        others: list[Manifest | None]
        if self.shard is None:
            shards = shard_manifests(self.output)
            old, others = whole, [*shards.values()]
            alone = not shards
        else:
            old, others = Manifest.read(self._own), [whole]
            alone = whole is not None and whole.dataset == new.dataset
        self._of_whole = whole
        new.created = (old.created or old.updated) if old is not None else ""
        changes = (differences(each.settings, new.settings) for each in (old, *others) if each is not None)
        self.changed = next((lines for lines in changes if lines), [])
        same = old is not None and (old.stage, old.dataset) == (new.stage, new.dataset)
        self.finished = same and alone and not self.changed and old is not None and old.complete

    def refuse(self, force: bool) -> None:
        """Refuse to continue an output of other or unknown settings.

        Raises:
            UsageError: The settings changed and ``force`` is off, or one shard cannot start the output over.
        """
        stores = self.output.suffix == ".h5" and bool(files_of(self.output))
        if stores and not force and not self._whole.exists():
            raise UsageError(f"{self.output} has no manifest: what made it is not known", "--force starts it over")
        if self.changed and not force:
            shown = "; ".join(self.changed[:4]) + (f"; and {len(self.changed) - 4} more" if len(self.changed) > 4 else "")
            place = own_place(self.output, self.shard)
            cure = f"{_precision_kept(self.changed)}--force starts it over, or give another --work"
            raise UsageError(f"{place} was made with other options ({shown})", cure)
        if self.changed and self.shard is not None and stores:
            raise UsageError(
                f"{self.output} was made with other options ({self.changed[0]}) and is not of one shard alone",
                f"remove it and {self._whole.name}, or give another --work",
            )

    def lock(self) -> FileLock:
        """Return the lock under which shards write the manifest of the whole."""
        return FileLock(self.output.with_name(f".{self.output.stem}.json.lock"), timeout=PATIENCE)

    def remove_leftovers(self) -> None:
        """Remove temporary manifests of a killed writer, but not those of shards, which may be in use."""
        if self.shard is None:
            remove_leftovers(self._whole.parent, self._whole.name)

    def begin(self) -> None:
        """Write the manifest as incomplete. Without a shard, it replaces the manifests of all shards."""
        self.write(complete=False)
        if self.shard is None:
            for shard in shard_manifests(self.output):
                shard.place(self._whole).unlink()
        elif self._of_whole is None or self.changed or self._of_whole.dataset != self.manifest.dataset:
            self.manifest.write(self._whole)

    def write(self, *, complete: bool, counts: dict[str, int] | None = None) -> None:
        """Write the manifest of this run."""
        self.written = True
        self.manifest.complete = complete
        self.manifest.counts = self.manifest.counts if counts is None else counts
        self.manifest.write(self._own)

    @property
    def begun(self) -> float:
        """Time in seconds since 1970 at which the output was begun; 0 if it is unknown."""
        return begun_at(self.manifest)

    @property
    def _own(self) -> Path:
        return own_place(self._whole, self.shard)


def begun_at(manifest: Manifest) -> float:
    """Return the time in seconds since 1970 at which an output was begun; 0 if it is unknown."""
    try:
        return datetime.fromisoformat(manifest.created or manifest.updated).timestamp()
    except ValueError:
        return 0.0


def _precision_kept(changed: list[str]) -> str:
    """Return the flag that keeps the old precision, because ``auto`` may differ on another machine."""
    flags = {'precision: "bfloat16" -> "float32"': "bf16", 'precision: "float32" -> "bfloat16"': "fp32"}
    return "".join(f"--precision {flags[line]} keeps its precision, " for line in changed if line in flags)
