"""What all fault tests stand on: stages, a forking runner, the table of outcomes.

A stage is a name, arguments of ``ssr`` and what it needs; a fault is a function that does something to runs of a stage. Another
stage is one more entry of `STAGES`.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tests.fixtures.forks import Ended, Run, Server

from .contents import differing, digest

FULL = os.environ.get("SSR_FAULTS") == "full"
"""Minutes instead of seconds: many more trials of the same kinds."""

ROOT = Path(__file__).parents[2]
IMAGES = 20
STEPS = 10
KILLED = -signal.SIGKILL


def sized(short: int, full: int) -> int:
    """A number of trials."""
    return full if FULL else short


def either(full: Iterable[Any], *short: Any) -> list[Any]:
    """The cases of the full form, or of the short one: those that take another way through the code."""
    return list(full if FULL else short)


@dataclass(frozen=True)
class Stage:
    """One command of the chain.

    Attributes:
        name: What tables call it.
        argv: Arguments of ``ssr``, but for config and work directory.
        changed: Flags that change its output.
        names: What a refusal because of them must name.
        lock: It refuses a second writer with these words; None: it may run twice.
        pool: It has worker processes.
    """

    name: str
    argv: tuple[str, ...]
    changed: tuple[str, ...] = ()
    names: str = ""
    lock: str | None = "another process is"
    pool: bool = False


CRF = ("--boundary", "crf" if find_spec("pydensecrf") else "none")
"""The CRF where it was built."""


STAGES = {
    stage.name: stage
    for stage in (
        Stage("superpixels", ("superpixels",), ("--segments", "9"), "segments", pool=True),
        Stage("align", ("align",), ("--hidden", "6"), "hidden"),
        Stage("cams", ("cams", "--ckpt", "auto"), ("--readout", "dense"), "readout"),
        Stage("refine", ("refine", *CRF), ("--background-power", "2"), "background_power", pool=True),
        Stage("train", ("train", "--ckpt", "auto"), ("--seed", "3"), "seed"),
        Stage("predict", ("predict", "--probabilities", *CRF), ("--no-flip",), "flip", pool=True),
        Stage("eval", ("eval", "masks"), lock=None),
    )
}
if FULL and find_spec("mmengine"):
    STAGES["retrain"] = Stage("retrain", ("retrain",), ("--seed", "3"), "seed")
TOML = f"""
[run]
workers = 1
device = "cpu"
precision = "fp32"
[superpixels]
segments = 12
[align]
hidden = 8
tokens = 6
batch = 5
iterations = {STEPS}
refresh = 4
learning_rate = 0.001
[train]
crop = 32
batch = 3
iterations = {STEPS}
save_every = 4
val_split = "val"
warmup = 2
hidden = 8
decoder_layers = 1
decoder_heads = 2
par_iterations = 1
par_dilations = [1, 2]
learning_rate = 0.01
[predict]
scales = [1.0]
[refine]
crf_iterations = 2
[retrain]
model = "segformer"
backbone = "dino"
channels = 16
crop = 64
batch = 2
schedule = "{STEPS}"
warmup = 2
save_every = 4
"""


@dataclass
class Lab:
    """The small dataset, the chain of stages over it undisturbed, and runs of its stages."""

    folder: Path
    config: Path
    root: Path
    server: Server

    def start(self, stage: str, work: Path, *flags: str, **options: object) -> Run:
        """Start a stage in a work directory; options are those of a job of tests/forks.py."""
        return self.command(*STAGES[stage].argv, *flags, "--config", self.config, "--work", work, **options)

    def command(self, *argv: object, **options: object) -> Run:
        """Start any command."""
        return self.server.start(*argv, **options)

    def run(self, stage: str, work: Path, *flags: str, seconds: float = 120.0) -> Ended:
        """Run a stage to its end."""
        return self.start(stage, work, *flags).wait(seconds)

    def passes(self, stage: str, work: Path, *flags: str) -> Ended:
        """Run a stage that must succeed."""
        ended = self.run(stage, work, *flags)
        assert ended.code == 0, f"{stage} {' '.join(flags)}: {ended}"
        return ended

    @property
    def calm(self) -> dict[str, Path]:
        """The work directory after each stage of an undisturbed chain, and before the first: ``""``."""
        return {stage: self.folder / f"calm-{number}" for number, stage in enumerate(("", *STAGES))}

    def run_chain(self) -> None:
        """Make the work directories of `calm`."""
        now = self.folder / "chain"
        now.mkdir()
        for stage, copy in self.calm.items():
            if stage:
                self.passes(stage, now)
            shutil.copytree(now, copy)

    def before(self, stage: str) -> Path:
        """The undisturbed work directory right before a stage."""
        names = ["", *STAGES]
        return self.calm[names[names.index(stage) - 1]]

    def fresh(self, stage: str, work: Path) -> Path:
        """A work directory in which a stage comes next."""
        if work.exists():
            for entry in work.iterdir():  # its place may be a mount
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        return Path(shutil.copytree(self.before(stage), work, dirs_exist_ok=True))

    def finished(self, stage: str, work: Path) -> Path:
        """A work directory in which a stage has ended."""
        return Path(shutil.copytree(self.calm[stage], work))

    @cached_property
    def _digests(self) -> dict[str, dict[str, str]]:
        return {stage: digest(work, self.folder / "chain") for stage, work in self.calm.items()}

    def differences(self, stage: str, work: Path, but: tuple[str, ...] = ()) -> list[str]:
        """Files that differ from those of an undisturbed chain up to a stage."""
        return differing(self._digests[stage], digest(work), but)


@dataclass
class Table:
    """Outcomes by fault and stage, as Markdown."""

    rows: dict[tuple[str, str], Counter[str]] = field(default_factory=dict)

    def add(self, fault: str, stage: str, outcome: str, times: int = 1) -> None:
        """Count one outcome of a trial."""
        self.rows.setdefault((fault, stage), Counter())[outcome] += times

    def note(self, fault: str, stage: str, outcome: str, times: int = 1) -> None:
        """Count something beside the trials."""
        self.add(fault, stage, f"({outcome})", times)

    def lines(self) -> Iterator[str]:
        """The table."""
        yield "| fault | stage | times | outcome |"
        yield "|---|---|---|---|"
        for (fault, stage), outcomes in self.rows.items():
            times = sum(count for outcome, count in outcomes.items() if not outcome.startswith("("))
            told = "; ".join(
                re.sub(r"^\((.*)\)$", r"\1", outcome) + f": {count}" for outcome, count in outcomes.items() if count
            )
            yield f"| {fault} | {stage} | {times} | {told} |"
