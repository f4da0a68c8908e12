"""Two checkouts of the project run every stage on the same inputs, and what they write is compared value by value.

    python benchmarks/compare_checkouts.py --before DIR --after DIR --work DIR [--photos CONFIG.toml] [--no-real] [--no-drawn]
        [--only NAME ...] [--fresh]

All cases run on the drawn set of `ssr sample`. With `--photos`, those marked as real also run on the split of a config that has
the sections dataset, clip and dino: a dozen photos are enough. Each case has a work directory of its own under
WORK/SIDE/SET/CASE, and a log beside it. Results of the side `before` are kept and used again; `--fresh` makes them again.
`--only` takes names of cases, and also runs what they start from. Names that differ between checkouts stand in `NAMES` and
`FILES`, the newest first: each side uses the first one that it knows or has written.

Prints a Markdown row for each output. Exits with 1 if a value differs by more than the tolerance, if an output is missing or
if a command failed. Commands run one after another, on the CPU with one thread. They need extra `crf`, retraining `mmseg`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from itertools import zip_longest
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import load_file

NAMES = {
    # command or flag -> its names, the newest first
    "ladder": ("ablation", "ladder"),
    "--normalise": ("--affinity", "--normalise"),
}
TENSORS: dict[str, str] = {}  # part of a tensor's name -> what it is compared as
FILES = {
    # part of an output's path -> what stands there, the newest first
    "ladder/": ("ablation/", "ladder/"),
    "cmpa.safetensors": ("alignment.safetensors", "cmpa.safetensors"),
}
ATTRIBUTES = ("labels", "size")  # of an image in a store, compared beside its array
METRICS = ("miou", "miou_covered", "pixel_accuracy", "precision", "recall", "confusion_ratio", "coverage", "per_class_iou")

RUN = "--device cpu --precision fp32 --workers 1"
SMALL = "--iterations 20 --warmup 5 --hidden 96 --decoder-layers 2 --decoder-heads 4"
DRAWN, REAL = "drawn", "real"
SIZES = {
    # set: command -> flags that come before those of a case
    DRAWN: {
        "superpixels": "--segments 60",
        "align": "--iterations 20",
        "train": f"{SMALL} --crop 128 --batch 4 --min-scale 0.75 --max-scale 1.5 --clip-layers 0",
        "predict": "--split val --probabilities",
        "retrain": "--crop 128 --channels 96",
    },
    REAL: {"align": "--iterations 20", "train": f"{SMALL} --crop 160 --batch 2", "predict": "--long-side 320 --probabilities"},
}
SMALL_MODELS = {"clip-blocks": 3, "clusters": 5, "mask-threshold": 0.03}  # [refine] of the drawn set, for align and train too

ALIGNED = "align/tokens.h5, align/cams.h5, cmpa.safetensors"
MASKS = "refined.h5, masks/*.png"
WHOLE = f"cams.h5, {MASKS}, ladder/*/refined.h5, ladder/*/masks/*.png, ladder/*/eval/*/report.json, eval/*/report.json"
HEADS = "cams --ckpt auto --few-photos 1 --min-average-precision 0 --force"
SCORE = "eval ladder --no-pictures"
KMEANS = "--prototypes kmeans --loss intra --learn-temperature --separation 0.5 --no-residual --features value --cam initial"
FILTER = "train --filter-from 0 --filter-blocks 4 --filter-difference absolute --par-scale 0.5 --accumulate 2"


@dataclass(frozen=True)
class Case:
    """Commands that follow one another in a work directory."""

    commands: str  # separated by semicolons, without the flags that all have
    outputs: str  # paths with wildcards, separated by commas
    start: str | None = "ssr"  # the case whose work directory is copied first
    recipe: str = "ssr"
    real: bool = False  # also run on the photos


def _cams(flags: str, real: bool = False) -> Case:
    return Case(flags, "cams.h5", real=real)


def _refine(flags: str, real: bool = False) -> Case:
    return Case(f"refine --force {flags}", MASKS, real=real)


CASES = {
    "sample": Case("sample --train 12 --val 4", "dataset/JPEGImages/*.jpg, dataset/SegmentationClass/*.png", None),
    "ssr": Case(
        f"superpixels; align; cams; refine --boundary crf; ladder; {SCORE}",
        f"superpixels.h5, {ALIGNED}, {WHOLE}",
        None,
        real=True,
    ),
    "aligned": Case(
        f"{HEADS}; refine --boundary crf --force; ladder --force; {SCORE}", f"{WHOLE}, ladder/plain/cams.h5", real=True
    ),
    "aligned-recipe": _cams("cams --ckpt auto --force"),
    "aligned-features": _cams(f"{HEADS} --aligned-readout gradcam --aligned-layer features"),
    "aligned-ln1": _cams(f"{HEADS} --aligned-readout gradcam --aligned-layer ln_1 --aligned-relu", real=True),
    "aligned-mix": _cams(f"{HEADS} --aligned-readout mix --aligned-superpixel-share 0.5"),
    "clip-es": Case(f"cams; refine --boundary crf; ladder; {SCORE}", WHOLE, None, "clip-es", real=True),
    "cams-views": _cams("cams --readout mix --scales 1.0 --scales 0.75 --flip --force"),
    "cams-dense": _cams("cams --readout dense --superpixel-share 0 --force"),
    "cams-batch": _cams("cams --readout mix --batch-size 4 --force"),
    "mask-colour": _refine("--superpixel-mask colour"),
    "mask-gate": _refine("--superpixel-mask gate"),
    "mask-cluster": _refine("--superpixel-mask cluster"),
    "mask-token": _refine("--superpixel-mask token"),
    "mask-once": _refine("--superpixel-mask gate --no-mask-every-step --power 3"),
    "sinkhorn": _refine("--normalise sinkhorn --symmetrise"),
    "box": _refine("--superpixel-mask none --box-mask --dino-blocks 0 --dino-weight 0"),
    "dino-alone": _refine("--clip-blocks 0 --dino-blocks 2 --dino-weight 1"),
    "confidence": _refine("--boundary crf --min-confidence 0.6 --background-power 2"),
    "align-kmeans": Case(f"align --force {KMEANS} --refresh 4", ALIGNED),
    "align-direct": Case("align --force --loss direct --text-noise 0.1 --cam-power 1", ALIGNED),
    "train": Case("train --ckpt auto; predict", "model.safetensors, predictions/*/*.png, predictions/*.h5", real=True),
    "train-heads": Case(
        "train --ckpt auto --train-heads --prototype-refresh 8 --heads-learning-rate 1e-3",
        "model.safetensors, train/cmpa.safetensors",
    ),
    "train-weclip": Case(
        "train --filter-from 8 --filter-blocks 4; predict --boundary crf",
        "model.safetensors, predictions/*/*.png",
        None,
        "weclip",
        real=True,
    ),
    "train-absolute": Case(FILTER, "model.safetensors", None, "weclip"),
    "train-masks": Case(
        "train --supervision masks --val-split val --validate-every 10 --no-flip",
        "model.safetensors, train/best.safetensors",
        None,
    ),
    "retrain-segformer": Case("retrain --write-only --model segformer --backbone dino", "retrain/config.py", real=True),
    "retrain-upernet": Case("retrain --write-only --model upernet --class-balanced", "retrain/config.py"),
    "retrain-resnet": Case("retrain --write-only --model deeplabv3plus --backbone-weights none", "retrain/config.py"),
}

SERVER = """
import importlib, json, os, sys
for name in ("torch", "open_clip", "timm", "h5py", "matplotlib.pyplot", "safetensors.torch", "scipy.ndimage", "sklearn.cluster",
             "skimage.segmentation", "typer", "rich.progress", "pydantic", "yaml", "mmengine"):
    try:
        importlib.import_module(name)
    except ImportError:
        pass
import ssr_cli
sys.stdin.readline()
print(os.path.dirname(os.path.dirname(os.path.realpath(ssr_cli.__file__))), flush=True)
for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if child == 0:
        log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        for target, source in ((0, os.open(os.devnull, os.O_RDONLY)), (1, log), (2, log)):
            os.dup2(source, target)
        sys.argv = ["ssr", *job["arguments"]]
        from ssr_cli.app import main
        main()
        sys.exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""Imports what both checkouts stand on once, then gives every command a process of its own."""


class Checkout:
    """One side: a checkout, and a process that runs its commands."""

    def __init__(self, side: str, folder: Path, work: Path) -> None:
        self.side, self.folder, self.work = side, folder, work / side
        self.work.mkdir(parents=True, exist_ok=True)
        self.ran: dict[tuple[str, str], str] = {}
        self.failed: dict[tuple[str, str], RuntimeError] = {}
        self.seconds = 0.0
        self._server: subprocess.Popen[str] | None = None
        self._known: dict[str, str] = {}

    def ssr(self, arguments: list[str], log: Path) -> int:
        """The exit code of a command."""
        if self._server is None:
            self._server = self._start()
        return int(self._ask(self._server, json.dumps({"arguments": arguments, "log": str(log)})))

    def _start(self) -> subprocess.Popen[str]:
        one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        own = {"PYTHONPATH": str(self.folder), "PYTHONHASHSEED": "0", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
        environment = {**os.environ, **one_thread, **own, "COLUMNS": "300", "NO_COLOR": "1"}
        pipe: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        server = subprocess.Popen([sys.executable, "-c", SERVER], cwd=self.folder, env=environment, **pipe)
        if (found := Path(self._ask(server, ""))) != self.folder:
            raise SystemExit(f"processes import {found}, not {self.folder}")
        return server

    def _ask(self, server: subprocess.Popen[str], line: str) -> str:
        assert server.stdin is not None and server.stdout is not None  # noqa: PT018
        print(line, file=server.stdin, flush=True)
        if not (answer := server.stdout.readline().strip()):
            raise SystemExit(f"the processes of {self.folder} have ended")
        return answer

    def named(self, command: str, word: str) -> str:
        """What this checkout calls a command or flag."""
        if word not in NAMES:
            return word
        if command not in self._known:
            log = self.work / f"help-{command}.txt"
            log.unlink(missing_ok=True)
            self.ssr([*command.split(), "--help"], log)
            self._known[command] = log.read_text(errors="replace")
        known = [name for name in NAMES[word] if re.search(rf"(?<![\w-]){name}(?![\w-])", self._known[command])]
        return known[0] if known else word

    def words(self, command: str, case: Case, where: str, folder: Path, config: Path) -> list[str]:
        """All arguments of a command."""
        first, *flags = shlex.split(command)
        verb = self.named("", first)
        if first == "sample":
            return [verb, *flags, "--work", str(folder)]
        sized = [*shlex.split(SIZES[where].get(first, "")), *flags, *shlex.split(RUN)]
        common = ["--config", str(config), "--work", str(folder), "--recipe", case.recipe]
        return [verb, *(self.named(verb if word.startswith("-") else "", word) for word in sized), *common]

    def run(self, name: str, where: str, photos: Path | None, keep: bool) -> str:
        """Run a case and those that it stands on, once. Equal text comes back for equal commands on an equal start."""
        if (name, where) in self.failed:
            raise self.failed[name, where]
        if (name, where) in self.ran:
            return self.ran[name, where]
        case = CASES[name]
        sample = self.run("sample", where, photos, keep) if where == DRAWN and name != "sample" else ""
        start = self.run(case.start, where, photos, keep) if case.start else ""
        config = self._config() if sample else photos or Path()
        folder = self.place(name, where)
        lines = [self.words(command, case, where, folder, config) for command in case.commands.split("; ")]
        described = json.dumps([str(self.folder), lines, photos.read_text() if photos and where == REAL else "", sample, start])
        done = folder.with_suffix(".done")
        if not (keep and folder.is_dir() and done.is_file() and done.read_text() == described):
            self._do(lines, folder, self.place(case.start, where) if case.start else None)
            done.write_text(described)
        self.ran[name, where] = described
        return described

    def _do(self, lines: list[list[str]], folder: Path, start: Path | None) -> None:
        done, log = folder.with_suffix(".done"), folder.with_suffix(".log")
        for path in (done, log):
            path.unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        if start is not None:
            shutil.copytree(start, folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        for line in lines:
            with log.open("a") as text:
                text.write(f"$ ssr {shlex.join(line)}\n")
            if code := self.ssr(line, log):
                last = log.read_text(errors="replace").strip().splitlines()[-1]
                failure = RuntimeError(f"{self.side}: {folder.name}: ssr {line[0]} exits with {code}: {last}")
                self.failed[folder.name, folder.parent.name] = failure
                raise failure
        took = time.monotonic() - began
        self.seconds += took
        print(f"{self.side}: {folder.parent.name} {folder.name} {took:.1f} s", file=sys.stderr, flush=True)

    def place(self, name: str, where: str) -> Path:
        """The work directory of a case."""
        return self.work / where / name

    def _config(self) -> Path:
        """A config of the drawn set: its data and models, but none of its choices, so that recipes are seen."""
        folder = self.place("sample", DRAWN)
        values = tomllib.loads((folder / "sample.toml").read_text())
        refine = {self.named("refine", f"--{key}")[2:].replace("-", "_"): value for key, value in SMALL_MODELS.items()}
        sections = {"refine": refine, **{name: values[name] for name in ("dataset", "clip", "dino")}}
        path = folder / "compare.toml"
        with path.open("w") as text:
            for name, options in sections.items():
                text.write("\n".join([f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in options.items()), ""]))
        return path


def read(path: Path, side: Checkout) -> Iterator[tuple[str, NDArray[Any] | str]]:
    """Names and values of a file."""
    if path.suffix == ".h5":
        with h5py.File(path, "r") as file:
            for key, dataset in file.items():
                yield key, dataset[()]
                for attribute in set(ATTRIBUTES) & set(dataset.attrs):
                    yield f"{key} {attribute}", np.array(json.loads(dataset.attrs[attribute]))
    elif path.suffix == ".safetensors":
        for key, array in load_file(path).items():
            yield reduce(lambda name, part: name.replace(*part), TENSORS.items(), key), array
    elif path.suffix == ".json":
        found = json.loads(path.read_text())
        for metric in METRICS:
            value = found.get(metric)
            for key, number in (value if isinstance(value, dict) else {"": value}).items():
                yield f"{metric} {key}", np.array(np.nan if number is None else number, np.float64)
    elif path.suffix in {".png", ".jpg"}:
        with Image.open(path) as picture:
            yield "", np.array(picture)
    else:
        yield "", path.read_text().replace(str(side.work), "WORK").replace(str(side.folder), "CHECKOUT")


def contents(output: str, folder: Path, side: Checkout) -> tuple[int, dict[str, NDArray[Any] | str]]:
    """How many files an output has in a work directory, and everything in them."""
    part = next((part for part in FILES if part in output), "")
    patterns = [output.replace(part, name) for name in FILES.get(part, ())] or [output]
    paths = next((found for pattern in patterns if (found := sorted(folder.glob(pattern)))), [])
    names = {path: "/".join(path.relative_to(folder).parts[1:]) for path in paths}
    return len(paths), {f"{names[path]}:{key}": value for path in paths for key, value in read(path, side)}


def difference(before: NDArray[Any] | str, after: NDArray[Any] | str) -> tuple[float, int]:
    """The largest absolute difference, and how many values or lines differ."""
    if isinstance(before, str) or isinstance(after, str):
        lines = zip_longest(str(before).splitlines(), str(after).splitlines())
        count = sum(one != other for one, other in lines)
        return (np.inf if count else 0.0), count
    if before.shape != after.shape or before.dtype != after.dtype:
        return np.inf, max(before.size, after.size)
    if before.tobytes() == after.tobytes():
        return 0.0, 0
    one, other = before.astype(np.float64), after.astype(np.float64)
    same = (one == other) | (np.isnan(one) & np.isnan(other))
    gap = np.nan_to_num(np.abs(one - other)[~same], nan=np.inf)
    return float(gap.max(initial=0.0)), int(gap.size)


def row(what: str, output: str, folders: tuple[Path, Path], sides: tuple[Checkout, Checkout]) -> tuple[str, float]:
    """One Markdown row, and the largest difference in it."""
    (files, before), (_, after) = (contents(output, *pair) for pair in zip(folders, sides, strict=True))
    if not before or before.keys() != after.keys():
        lacking, more = sorted(before.keys() - after.keys()), sorted(after.keys() - before.keys())
        says = f"{len(lacking)} missing, {len(more)} more, such as `{(lacking or more or ['nothing written'])[0]}`"
        return f"| {what} | `{output}` | {files} / {len(before)} | **no** | - | {says} |", np.inf
    found = [difference(value, after[key]) for key, value in before.items()]
    largest, count = max(gap for gap, _ in found), sum(number for _, number in found)
    total = sum(len(value.splitlines()) if isinstance(value, str) else value.size for value in before.values())
    equal = "yes" if not count else "**no**"
    return f"| {what} | `{output}` | {files} / {len(before)} | {equal} | {largest:.3g} | {count:,} of {total:,} |", largest


def main() -> int:
    """Run both sides and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True, help="checkout whose results count as right")
    parser.add_argument("--after", type=Path, required=True, help="checkout that is compared with it")
    parser.add_argument("--work", type=Path, required=True, help="folder for everything that is written")
    parser.add_argument("--photos", type=Path, metavar="CONFIG.toml", help="real photos and weights: dataset, clip, dino")
    parser.add_argument("--no-real", action="store_true", help="leave the photos out")
    parser.add_argument("--no-drawn", action="store_true", help="leave the drawn set out")
    parser.add_argument("--only", nargs="+", choices=list(CASES), metavar="NAME", default=list(CASES))
    parser.add_argument("--fresh", action="store_true", help="make the results of --before again")
    parser.add_argument("--tolerance", type=float, default=1e-5)
    given = parser.parse_args()
    work = given.work.resolve()
    before, after = Checkout("before", given.before.resolve(), work), Checkout("after", given.after.resolve(), work)
    photos = None if given.no_real or given.photos is None else given.photos.resolve()
    sets = [DRAWN] * (not given.no_drawn) + [REAL] * (photos is not None)
    wanted = [(where, name) for where in sets for name in given.only if where == DRAWN or CASES[name].real]
    if importlib.util.find_spec("mmseg") is None:
        wanted = [(where, name) for where, name in wanted if not name.startswith("retrain")]
    print("| case | output | files / arrays | equal | largest difference | values that differ |\n|---|---|---|---|---|---|")
    gaps: list[float] = []
    for where, name in wanted:
        try:
            before.run(name, where, photos, keep=not given.fresh)
            after.run(name, where, photos, keep=False)
        except RuntimeError as failure:
            print(f"| {where} {name} | all | - | **no** | - | {failure} |".replace("\n", " "), flush=True)
            gaps.append(np.inf)
            continue
        folders = (before.place(name, where), after.place(name, where))
        for output in CASES[name].outputs.split(", "):
            line, gap = row(f"{where} {name}", output, folders, (before, after))
            print(line, flush=True)
            gaps.append(gap)
    beyond = sum(gap > given.tolerance for gap in gaps)
    print(f"\n{len(gaps)} outputs, {sum(gap == 0 for gap in gaps)} equal, {beyond} beyond {given.tolerance:g}", end="; ")
    print(f"before {before.seconds:.0f} s, after {after.seconds:.0f} s")
    return int(beyond > 0)


if __name__ == "__main__":
    sys.exit(main())
