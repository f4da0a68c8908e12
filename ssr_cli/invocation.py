"""One command line: flags, config file, work directory and recipe combined."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from pipelines.config import FILE_SUFFIXES, SECTIONS, Values, build_options, flag_of, read_config, read_recipe
from pipelines.errors import UsageError
from pipelines.options.scale import ScaleOptions
from pipelines.options.sources import ClipOptions, DatasetOptions, DinoOptions, Options, RunOptions

if TYPE_CHECKING:
    from pipelines.stores.shard import Shard
    from pipelines.workdir.workspace import Workspace

DEFAULT_RECIPE = "ssr"

SOURCES = ("dataset", "clip", "dino")
"""Sections that a work directory stores as a whole, from flags as well as from a config file."""

AnyOptions = TypeVar("AnyOptions", bound=Options)


@dataclass(frozen=True)
class Invocation:
    """One command line.

    Attributes:
        sections: Sections whose flags the command has.
        flags: The flags that were given.
        config: Config file, or None.
        work_flag: ``--work``, or None.
        recipe_flag: ``--recipe``, or None.
        force: ``--force``.
        fallback: Work directory if none is named and none can be inferred; None: that is an error.
    """

    sections: tuple[str, ...]
    flags: Values
    config: Path | None
    work_flag: Path | None
    recipe_flag: str | None
    force: bool
    fallback: Path | None = None

    @cached_property
    def _config(self) -> tuple[Values, dict[str, Any]]:
        return read_config(self.config) if self.config else ({}, {})

    @cached_property
    def work(self) -> Path:
        """The work directory: ``--work``, the config's, ``runs/DATASET``, or the only one under ``runs``."""
        values, top = self._config
        if self.work_flag or "work" in top:
            return self.work_flag or Path(top["work"])
        kind = self.flags.get("dataset", {}).get("kind") or values.get("dataset", {}).get("kind")
        if kind:
            return Path("runs") / str(kind)
        existing = sorted(path.parent for path in Path("runs").glob("*/work.json"))
        if len(existing) == 1:
            return existing[0]
        if self.fallback is not None:
            return self.fallback
        which = f"there are {', '.join(map(str, existing))}" if existing else "there is none under runs/"
        raise UsageError(f"which work directory? {which}", "give DATASET (voc, coco or folder), --work or --config")

    @cached_property
    def _memory(self) -> dict[str, Any]:
        from pipelines.workdir.memory import recall

        return recall(self.work)

    @cached_property
    def _remembered_config(self) -> Values:
        """Stage sections of the config file of this command or, without one, of the last command that had one."""
        if self.config is None:
            return cast("Values", self._memory.get("config") or {})
        sections = {name: entries for name, entries in self._config[0].items() if name not in SOURCES}
        return {
            name: {key: str(value.absolute()) if isinstance(value, Path) else value for key, value in entries.items()}
            for name, entries in sections.items()
        }

    @cached_property
    def recipe(self) -> str:
        """``--recipe``, the config's, the work directory's, or the default."""
        return self.recipe_flag or self._config[1].get("recipe") or self._memory.get("recipe") or DEFAULT_RECIPE

    def options(self, section: str, kind: type[AnyOptions]) -> AnyOptions:
        """One section's options: flag > config > work directory > recipe > default."""
        if SECTIONS[section] is not kind:
            raise TypeError(f"[{section}] holds {SECTIONS[section].__name__}, not {kind.__name__}")
        remembered = self._memory.get(section) or self._remembered_config.get(section) or {}
        if section == "dataset" and self.flags.get("dataset", {}).get("root"):
            remembered = {}
        layers = (read_recipe(self.recipe).get(section, {}), remembered, self._config[0].get(section, {}))
        return cast("AnyOptions", build_options(section, *layers, self.flags.get(section, {})))

    @cached_property
    def workspace(self) -> Workspace:
        """The work directory, dataset, encoders and run options that a stage needs."""
        from pipelines.workdir.workspace import Workspace

        dataset = self.options("dataset", DatasetOptions)
        return Workspace(
            work=self.work,
            dataset_options=_absolute(dataset),
            clip=_absolute(self.options("clip", ClipOptions)),
            dino=_absolute(self.options("dino", DinoOptions)),
            run=self.options("run", RunOptions),
            recipe=self.recipe,
            force=self.force,
            config=self._remembered_config,
            shard=self.shard,
        )

    def command(self, command: str, *sections: str, more: Sequence[str] = (), without: Collection[str] = ()) -> str:
        """Another command on the same data, quoted for a shell: with the flags, the config and the work directory of this one.

        Args:
            command: ``ssr`` and its name.
            *sections: Sections whose flags both commands have.
            more: Further words.
            without: Options whose flags are left out.
        """
        words: list[str] = []
        for section in sections:
            for key, value in self.flags.get(section, {}).items():
                if key in without:
                    continue
                flag = flag_of(section, key)
                if isinstance(value, bool):
                    words.append(flag if value else f"--no-{flag[2:]}")
                else:
                    words += [str(value)] if not flag.startswith("--") else [flag, str(value)]
        words += ["--config", str(self.config)] if self.config else []
        words += ["--work", str(self.work)] if self.work_flag or not self.config else []
        words += ["--recipe", self.recipe_flag] if self.recipe_flag else []
        return " ".join([command, shlex.join([*words, *more])])

    @property
    def scale(self) -> ScaleOptions:
        """Options of ``[scale]``; the defaults for a command without such flags."""
        return self.options("scale", ScaleOptions) if "scale" in self.sections else ScaleOptions()

    @cached_property
    def _launched(self) -> tuple[Shard, str] | None:
        """Shard that a launcher assigned to this process, and the launcher's name."""
        from pipelines.execution.environment import shard_of_environment

        explicit = self.scale.shard or self.scale.devices or self.scale.engine == "ray"
        return None if explicit or "scale" not in self.sections else shard_of_environment()

    @cached_property
    def shard(self) -> Shard | None:
        """Shard of the image list that this process takes; None: all images."""
        from pipelines.stores.shard import Shard

        if self.scale.shard is not None:
            shard = Shard.parse(self.scale.shard)
            return shard if shard.count > 1 else None
        return self._launched[0] if self._launched else None

    @property
    def launcher(self) -> str | None:
        """Name of the launcher that assigned the shard; None: ``--shard`` or no shard."""
        return self._launched[1] if self._launched else None


def _absolute(options: AnyOptions) -> AnyOptions:
    """Make paths absolute, so that later commands may run from another folder."""
    changes: dict[str, Any] = {}
    for key, value in options:
        if isinstance(value, Path):
            changes[key] = value.expanduser().absolute()
        elif isinstance(value, str) and Path(value).suffix in FILE_SUFFIXES:
            changes[key] = str(Path(value).expanduser().absolute())
    return options.model_copy(update=changes)


def refuse_missing(work: Path) -> None:
    """Refuse a work directory that is not there, for commands that only look at one.

    Raises:
        UsageError: There is no such folder.
    """
    if not work.is_dir():
        raise UsageError(f"expected a work directory, found {'a file' if work.exists() else 'nothing'} at {work}", "--work")
