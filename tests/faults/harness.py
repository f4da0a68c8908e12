"""What all fault tests stand on: stages, a forking runner, the table of outcomes.

A stage is a name, arguments of ``ssr`` and what it needs; a fault is a function that does something to runs of a stage. Another
stage is one more entry of `STAGES`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

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


def crf_flag() -> str:
    """The CRF where it was built."""
    try:
        import pydensecrf.densecrf  # noqa: F401
    except ImportError:
        return "--no-crf"
    return "--crf"


STAGES = {
    stage.name: stage
    for stage in (
        Stage("superpixels", ("superpixels",), ("--segments", "9"), "segments", pool=True),
        Stage("align", ("align",), ("--hidden", "6"), "hidden"),
        Stage("cams", ("cams", "--ckpt", "auto"), ("--readout", "dense"), "readout"),
        Stage("refine", ("refine", crf_flag()), ("--background-power", "2"), "background_power", pool=True),
        Stage("train", ("train", "--ckpt", "auto"), ("--seed", "3"), "seed"),
        Stage("predict", ("predict", "--probabilities", crf_flag()), ("--no-flip",), "flip", pool=True),
        Stage("eval", ("eval", "masks"), lock=None),
    )
}
if FULL and find_spec("mmengine"):
    STAGES["retrain"] = Stage("retrain", ("retrain",), ("--seed", "3"), "seed")
TOML = f"""
[run]
workers = 1
device = "cpu"
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


@dataclass(frozen=True)
class Ended:
    """What a run came to.

    Attributes:
        code: Exit code, negative after a signal, None if it was stopped because it took too long.
        said: Both streams.
        orphans: Processes that it left behind; they are gone now.
    """

    code: int | None
    said: str
    orphans: int = 0

    @property
    def errors(self) -> list[str]:
        """Lines that tell an error."""
        return [line for line in self.said.splitlines() if line.startswith("error:")]

    @property
    def clear(self) -> bool:
        """One line tells what is wrong, nothing spills over."""
        return len(self.errors) == 1 and "unexpected" not in self.errors[0] and "Traceback" not in self.said

    def __str__(self) -> str:
        return f"exit {self.code}: {self.said[-1500:]}"


@dataclass
class Run:
    """A run that was started."""

    pid: int
    out: Path
    server: Server

    def wait(self, seconds: float = 120.0, grace: float = 0.0) -> Ended:
        """Wait for its end; what is left of it after ``grace`` seconds is counted and removed."""
        code = self.server.ask(do="wait", pid=self.pid, seconds=seconds)["code"]
        if code is None:
            os.kill(self.pid, signal.SIGKILL)
            self.server.ask(do="wait", pid=self.pid, seconds=60)
        end = time.monotonic() + grace
        while (left := session_of(self.pid)) and time.monotonic() < end:
            time.sleep(0.02)
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        while session_of(self.pid):
            time.sleep(0.002)
        return Ended(code, self.out.read_text(errors="replace"), len(left))

    def kill(self) -> bool:
        """SIGKILL; False if it had ended before."""
        os.kill(self.pid, signal.SIGKILL)  # until it is waited for, its number is nobody else's
        return True


class Server:
    """The forking process; see forks.py."""

    def __init__(self, clip_config: Path) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("forks.py")), str(clip_config)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT,
        )  # fmt: skip
        self.package = self._answer()["ready"]

    def ask(self, **job: Any) -> dict[str, Any]:
        """One question, one answer."""
        assert self._process.stdin is not None
        print(json.dumps(job), file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the forking process died"
        return json.loads(line)

    def close(self) -> None:
        """End it."""
        self._process.communicate(json.dumps({"do": "stop"}) + "\n", timeout=60)


@dataclass
class Lab:
    """The small dataset, the chain of stages over it undisturbed, and runs of its stages."""

    folder: Path
    config: Path
    root: Path
    server: Server
    _runs: int = 0

    def start(self, stage: str, work: Path, *flags: str, pause: float = 0.0) -> Run:
        """Start a stage in a work directory."""
        return self.command(*STAGES[stage].argv, *flags, "--config", self.config, "--work", work, pause=pause)

    def command(self, *argv: object, pause: float = 0.0) -> Run:
        """Start any command."""
        self._runs += 1
        out = self.folder / f"out{self._runs % 8}"  # a few at once at most
        pid = self.server.ask(do="start", argv=[str(word) for word in argv], out=str(out), pause=pause)["pid"]
        return Run(pid, out, self.server)

    def run(self, stage: str, work: Path, *flags: str, seconds: float = 120.0) -> Ended:
        """Run a stage to its end."""
        return self.start(stage, work, *flags).wait(seconds)

    def passes(self, stage: str, work: Path, *flags: str) -> Ended:
        """Run a stage that must succeed."""
        ended = self.run(stage, work, *flags)
        assert ended.code == 0, f"{stage} {' '.join(flags)}: {ended}"
        return ended

    @cached_property
    def calm(self) -> dict[str, Path]:
        """The work directory after each stage of an undisturbed chain, and before the first: ``""``."""
        now = self.folder / "chain"
        now.mkdir()
        after = {"": self.folder / "calm-0"}
        shutil.copytree(now, after[""])
        for number, stage in enumerate(STAGES, start=1):
            self.passes(stage, now)
            after[stage] = self.folder / f"calm-{number}"
            shutil.copytree(now, after[stage])
        return after

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


def session_of(leader: int) -> list[int]:
    """Processes of a session that live, but for its leader."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != leader:
            with contextlib.suppress(OSError):
                state, _, _, session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
                if int(session) == leader and state != "Z":
                    found.append(int(entry.name))
    return found


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
