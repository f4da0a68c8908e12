"""Killed at moments spread over a run and run again: nothing committed is lost or redone, and the end is an undisturbed run's.

A run kills itself with SIGKILL right before or after its n-th rename or removal of a file, the moments at which an output could
break, or before its n-th training step; see `Events` in tests/forks.py.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from pipelines.stores.array_store import ArrayReader, store_exists
from tests.faults.harness import either, sized

KILLED = -9
IMAGES, STEPS = 12, 20  # photos; steps of align, train makes half of them, retrain 8
SHARES = [n / sized(10, 12) for n in range(1, 13)]
"""Moments of death, run by run, as shares of the renames and removals of an undisturbed run; the later runs have fewer."""

TOML = f"""
[run]
workers = 1
device = "cpu"
precision = "fp32"
[superpixels]
segments = 12
[cams]
readout = "gradcam"
[align]
cam = "initial"
hidden = 8
tokens = 6
batch = 5
iterations = {STEPS}
refresh = 7
learning_rate = 0.001
[train]
crop = 32
batch = 3
iterations = {STEPS // 2}
save_every = 4
val_split = "val"
warmup = 2
hidden = 8
decoder_layers = 1
decoder_heads = 2
clip_layers = 2
filter_from = 5
affinity_loss = 0.1
par_iterations = 1
par_dilations = [1, 2]
learning_rate = 0.01
[retrain]
model = "segformer"
backbone = "dino"
schedule = "8"
batch = 2
crop = 64
channels = 16
warmup = 2
save_every = 3
val_split = "val"
validate_every = 3
"""


@dataclass(frozen=True)
class Command:
    """What is killed: arguments, what it writes, what may stand before it, and at which steps of its runs it is killed."""

    argv: str
    outputs: tuple[str, ...]
    manifests: tuple[str, ...]
    before: tuple[str, ...] = ()
    deaths: tuple[int, ...] = ()
    store: str = ""
    set: dict[str, Any] = field(default_factory=dict)


TRAIN = {"pipelines.training.curves.LOG_EVERY": 1, "pipelines.workdir.validated_curves.curves_figure": None}
RETRAIN = {"pipelines.training.curves.LOG_EVERY": 1, "pipelines.workdir.validated_curves.curves_figure": None}
COMMANDS = {
    "tag": Command(
        "tag --tag-threshold 0.1", ("tag_scores.h5", "tags.csv", "thresholds.json"), ("tag_scores",), store="tag_scores.h5"
    ),
    "cams": Command("cams --recipe clip-es", ("cams.h5",), ("cams",), store="cams.h5"),
    "refine": Command(
        "refine --recipe clip-es --boundary none", ("refined.h5", "masks/*.png"), ("refined", "masks"), ("cams",),
        store="refined.h5",
    ),
    "masks": Command(
        "masks --boundary none", ("superpixels.h5", "cams.h5", "refined.h5", "masks/*.png"),
        ("superpixels", "cams", "refined", "masks"), store="refined.h5",  # the last of the three to be committed
    ),
    "align": Command(
        "align", ("cmpa.safetensors", "align/tokens.h5", "align/cams.h5", "align/inputs.h5", "align/background.h5"),
        ("cmpa",), deaths=(1, 6, 5), store="align/background.h5",
    ),
    "train": Command(
        "train --recipe weclip",
        ("model.safetensors", "train/state.safetensors", "train/best.safetensors", "train/curves.jsonl"),
        ("model",), deaths=(1, 6, 3), set=TRAIN,
    ),
    "views": Command(
        "train --recipe weclip --filter-from -1 --cache-views 2",
        ("model.safetensors", "train/state.safetensors", "train/views.h5", "train/view_labels.h5"),
        ("model", "train/views"), deaths=(1, 6, 3), store="train/view_labels.h5", set=TRAIN,
    ),
    "retrain": Command(
        "retrain", ("retrained.safetensors", "retrain/best.safetensors", "retrain/curves.jsonl"),
        ("retrained",), ("cams", "refine"), deaths=(1, 5, 2), set=RETRAIN,
    ),
}  # fmt: skip
TRAININGS = [name for name, command in COMMANDS.items() if command.deaths]


@dataclass
class Done:
    """What a run came to: exit code, events, ids with a committed array and with a mask before it, both streams."""

    code: int | None
    events: list[list[str]]
    committed: set[str]
    masks: set[str]
    said: str
    store: str

    @property
    def steps(self) -> list[int]:
        return [int(words[1]) for words in self.events if words[0] == "step"]

    @property
    def made(self) -> list[str]:
        """Photos whose arrays of the store were made."""
        return [words[2] for words in self.events if words[0] == "array" and words[1] == Path(self.store).stem]

    @property
    def moments(self) -> list[str]:
        return [" ".join(words) for words in self.events if words[0] in {"file", "did"}]


class Bench:
    """Runs of one command in work directories of one drawn dataset."""

    def __init__(self, folder: Path, command: Command, forks: Any) -> None:
        self.folder, self.command, self.forks = folder, command, forks
        self.runs: dict[str, list[Done]] = {}

    def work(self, name: str) -> Path:
        work = self.folder / name
        if not work.exists():
            work.mkdir()
            for entry in (self.folder / "base").glob("*"):
                (shutil.copytree if entry.is_dir() else shutil.copy)(entry, work / entry.name)
        return work

    def run(self, name: str, *flags: str, argv: str = "", **deaths: int) -> Done:
        work, log = self.work(name), self.folder / "log"
        committed: set[str] = set()
        masks = {path.stem for path in (work / "masks").glob("*.png")}
        if self.command.store and store_exists(work / self.command.store):
            with ArrayReader(work / self.command.store) as reader:
                committed = set(reader.ids())
        words = [*(argv or self.command.argv).split(), "--config", self.folder / "kill.toml", "--work", work, *flags]
        events = {"log": str(log), "folder": str(work), "deaths": deaths}
        ended = self.forks.start(*words, events=events, set=self.command.set).wait(300)
        lines = [line.split() for line in log.read_text().splitlines()]
        done = Done(ended.code, lines, committed, masks, ended.said[-800:], self.command.store)
        self.runs.setdefault(name, []).append(done)
        return done


@pytest.fixture(scope="module", params=either(COMMANDS, "tag", "refine", "masks", "align", "views", "retrain"))
def bench(request, tmp_path_factory, make_voc, models, tiny_voc, forks) -> Bench:
    """Runs of a command: undisturbed in ``calm``, killed by files in ``files`` and by steps in ``steps``."""
    command = COMMANDS[request.param]
    if request.param == "retrain":
        if find_spec("mmengine") is None:
            pytest.skip("needs mmsegmentation")
        forks.ask(do="mmsegmentation")
    folder = tmp_path_factory.mktemp("kill")
    photos = {
        f"photo_{n:02d}": ((48, 32) if n % 3 else (32, 48), ("cat", "dog", "bird")[: 1 + n % 3] if n % 5 else ("car",))
        for n in range(IMAGES)
    }
    make_voc(folder / "VOC2012", photos)
    config = tiny_voc.write_config(folder / "kill.toml", models, TOML)
    config.write_text(config.read_text().replace(str(tiny_voc.root), str(folder / "VOC2012")))
    bench = Bench(folder, command, forks)
    (folder / "base").mkdir()
    for name in command.before:
        assert bench.run("base", argv=COMMANDS[name].argv).code == 0
    moments = len(bench.run("calm").moments)
    for number, share in enumerate(SHARES):  # odd moments are right before a rename or removal, even ones right after
        if bench.run("files", file=int(share * moments) // 2 * 2 + 1 + number % 2).code == 0:
            break
    else:
        bench.run("files")
    for step in command.deaths:
        bench.run("steps", step=step)
    bench.run("steps")
    return bench


def works(bench: Bench) -> list[str]:
    return [name for name in bench.runs if name not in {"base", "calm"}]


def saved_step(run: Done, before: int) -> int:
    """Where a training goes on after a run: behind the last step whose state was renamed into place."""
    saved, reached = before, before
    for words in run.events:
        if words[0] == "step":
            reached = int(words[1]) + 1
        elif words == ["did", "state.safetensors"]:
            saved = reached
    return saved


def test_runs_were_killed_at_several_files_and_the_last_one_ended(bench):
    for name, runs in ((name, bench.runs[name]) for name in ("calm", *works(bench))):
        assert [run.code for run in runs] == [KILLED] * (len(runs) - 1) + [0], (name, runs[-1].said)
    last = [run.moments[-1] for run in bench.runs["files"][:-1]]
    assert len(last) >= 4
    assert len({moment.split()[1].split(".")[0] for moment in last}) >= 2, last
    assert {moment.split()[0] for moment in last} == {"file", "did"}, last


def test_end_is_that_of_an_undisturbed_run(bench):
    """Outputs to the byte, manifests but for times and counts, and no litter."""
    calm = bench.work("calm")
    for name in works(bench):
        work = bench.work(name)
        for pattern in bench.command.outputs:
            contents = [{path.name: path.read_bytes() for path in sorted(folder.glob(pattern))} for folder in (calm, work)]
            assert contents[0], pattern
            assert contents[0] == contents[1], f"{name}: {pattern}"
        for manifest in bench.command.manifests:
            one, other = (json.loads((folder / f"{manifest}.json").read_text()) for folder in (calm, work))
            undated = {"updated": "", "created": "", "counts": {}}
            assert other | undated == one | undated, name
            assert other["complete"] is True
            assert other["counts"].get("iterations") == one["counts"].get("iterations")
        assert [path.name for path in work.rglob("*") if path.name.endswith((".tmp", ".parts"))] == []


def test_nothing_committed_is_lost_or_redone(bench):
    """A photo is committed with its array in the store; its mask counts from then on."""
    for name in works(bench):
        runs = bench.runs[name]
        for before, after in pairwise(runs):
            assert before.committed <= after.committed
        for run in runs:
            assert not run.committed & set(run.made)
            assert not run.committed & run.masks & {words[1] for words in run.events if words[0] == "mask"}
    if bench.command.store:
        assert any(0 < len(run.committed) < IMAGES for run in bench.runs["files"])


def test_no_step_is_taken_twice_but_those_since_the_last_save(bench):
    if bench.command.argv.split()[0] not in {"align", "train"}:
        pytest.skip("no steps, or mmengine's")
    for name in works(bench):
        saved = 0
        for run in bench.runs[name]:
            if run.steps:
                assert run.steps == list(range(saved, saved + len(run.steps)))
            saved = saved_step(run, saved)
        assert saved == (STEPS if bench.command.argv == "align" else STEPS // 2)
    assert bench.runs["steps"][-1].steps[0] > 0


def test_status_tells_what_to_do_next(bench, ssr):
    if bench.command.argv.startswith("refine"):
        assert f"next: ssr eval --work {bench.work('files')}" in ssr("status", "--work", bench.work("files")).out


def test_metrics_of_align_are_those_of_an_undisturbed_run(bench):
    """But for the loss, whose mean begins anew where a run does."""
    if bench.command.argv == "align":
        for name in works(bench):
            calm, resumed = (json.loads((bench.work(w) / "align/metrics.json").read_text()) for w in ("calm", name))
            assert [{**line, "loss": 0} for line in resumed] == [{**line, "loss": 0} for line in calm]
            assert [line["iteration"] for line in resumed] == [0, 7, 14, 20]


def test_forced_training_that_was_killed_goes_on(bench):
    if bench.command.argv.split()[0] in {"align", "train"}:
        first, forced, last = bench.run("forced"), bench.run("forced", "--force", step=8), bench.run("forced")
        assert forced.steps == list(range(8))
        assert forced.made == []
        assert 0 < last.steps[0] < 8
        assert (first.code, forced.code, last.code) == (0, KILLED, 0)
        for pattern in bench.command.outputs:
            assert (bench.work("forced") / pattern).read_bytes() == (bench.work("calm") / pattern).read_bytes()


def test_resume_never_starts_over_on_the_patches_kept(bench):
    if bench.command.argv == "align":
        first, second = bench.run("never", step=11), bench.run("never", "--resume", "never", step=14)
        third = bench.run("never", "--resume", "never")
        assert len(first.made) == IMAGES
        assert (second.steps, third.steps) == (list(range(14)), list(range(STEPS)))
        assert second.made == third.made == []
        for pattern in bench.command.outputs:
            assert (bench.work("never") / pattern).read_bytes() == (bench.work("calm") / pattern).read_bytes()
