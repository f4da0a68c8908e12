"""What several processes bring, where a stage's time goes, and that memory does not follow the length of the work list.

    python benchmarks/scale.py processes --config my.toml [--count 32] [--processes 1 2 4]
    python benchmarks/scale.py shares --config my.toml [--count 32]
    python benchmarks/scale.py memory [--entries 200 20000]
    python benchmarks/scale.py list [--entries 1000000 10000000]

Prints Markdown. ``processes`` runs ``ssr STAGE --devices cpu,...`` and takes the seconds from the first photo to the last,
without loading. ``shares`` adds up, in one process, CPU seconds of decoding and of the workers behind the encoders, and
seconds of encoders and stores. ``memory`` and ``list`` need no data: they make their own.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pipelines.config import build_options, read_config
from pipelines.datasets import load_dataset
from pipelines.options.sources import DatasetOptions

SSR = [sys.executable, "-c", "from ssr_cli.app import main; main()"]
STAGES = (("superpixels",), ("cams",), ("refine",), ("refine", "--boundary", "crf", "--force"))
NAMES = ("superpixels", "cams", "refine", "masks with CRF")


def main() -> None:
    """Run one of the four."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["processes", "shares", "memory", "list"])
    parser.add_argument("--config", type=Path)
    parser.add_argument("--count", type=int, default=32, help="photos, evenly spread over the split")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--entries", type=int, nargs="+")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        if given.what in {"processes", "shares"}:
            if given.config is None:
                parser.error(f"{given.what} needs --config")
            base = ["--config", str(given.config.absolute()), "--split", str(_chosen(given.config, given.count, place))]
            if given.what == "processes":
                _processes(base, given.count, given.processes, place)
            else:
                _shares(base, given.count, place)
        elif given.what == "memory":
            _memory(given.entries or [200, 20_000], place)
        else:
            _list(given.entries or [1_000_000, 10_000_000], place)


def _chosen(config: Path, count: int, place: Path) -> Path:
    values, _ = read_config(config)
    dataset = load_dataset(DatasetOptions.model_validate(build_options("dataset", values.get("dataset", {})).model_dump()))
    samples = dataset.samples
    listed = place / "photos.txt"
    listed.write_text("".join(f"{samples[i * len(samples) // count].image_id}\n" for i in range(count)))
    return listed


def _ssr(*words: str, environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        [*SSR, *words], capture_output=True, text=True, check=True, env=os.environ | (environment or {}), cwd=Path.cwd()
    )
    return done.stderr


def _processes(base: list[str], count: int, processes: Sequence[int], place: Path) -> None:
    seconds: dict[str, list[float]] = {name: [] for name in NAMES}
    for number in processes:
        devices = ["--devices", ",".join(["cpu"] * number)]
        for name, stage in zip(NAMES, STAGES, strict=True):
            said = _ssr(*stage, *base, "--work", str(place / f"work-{number}"), *devices)
            found = re.findall(r": \d+/\d+ in ([0-9.]+) s", said)
            seconds[name].append(float(found[-1]))
    cores = len(os.sched_getaffinity(0))
    print(f"{count} photos, {cores} cores; photos a second, in brackets relative to one process\n")
    print(f"| | {' | '.join(f'{n} process' + 'es' * (n > 1) for n in processes)} |\n|---|{'---|' * len(processes)}")
    for name, times in seconds.items():
        print(f"| {name} | {' | '.join(f'{count / t:.2f} ({times[0] / t:.2f})' for t in times)} |")


def _shares(base: list[str], count: int, place: Path) -> None:
    from typer.testing import CliRunner

    from pipelines.method.encoders import Encoders
    from pipelines.stages import cams
    from pipelines.stages.refine import stage as refine
    from pipelines.stores.array_store import ArrayWriter
    from ssr_cli.app import app

    spent: Counter[str] = Counter()

    def timed(owner: Any, name: str, kind: str, clock: Callable[[], float]) -> None:
        function = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            started = clock()
            try:
                return function(*args, **kwargs)
            finally:
                spent[kind] += clock() - started

        setattr(owner, name, call)

    timed(cams, "load_photo", "decode, resize", time.thread_time)
    timed(refine, "load_photo", "decode, resize", time.thread_time)
    timed(cams, "extract_cams", "encode", time.perf_counter)
    timed(Encoders, "encode", "encode", time.perf_counter)
    timed(refine, "refined_cams", "affinity, propagation", time.perf_counter)
    for name in ("commit", "close"):
        timed(ArrayWriter, name, "write stores", time.perf_counter)
    print(f"{count} photos, one process; seconds a photo (share of their sum)\n")
    kinds = ("decode, resize", "encode", "affinity, propagation", "write stores", "workers: SLIC or CRF, PNG")
    print(f"| | {' | '.join(kinds)} | wall |\n|---|{'---|' * (len(kinds) + 1)}")
    for name, stage in zip(NAMES, STAGES, strict=True):
        spent.clear()
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        started = time.perf_counter()
        result = CliRunner().invoke(app, [*stage, *base, "--work", str(place / "work")])
        wall = time.perf_counter() - started
        if result.exit_code:
            raise SystemExit(result.output)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent[kinds[-1]] = after.ru_utime + after.ru_stime - children.ru_utime - children.ru_stime
        total = sum(spent[kind] for kind in kinds)
        cells = [f"{spent[kind] / count:.3f} ({100 * spent[kind] / total:.0f} %)" if spent[kind] else "" for kind in kinds]
        print(f"| {name} | {' | '.join(cells)} | {wall / count:.3f} |")
    print("\nwall includes loading the models and starting the workers")


def _memory(entries: Sequence[int], place: Path) -> None:
    """Small photos: what counts is how many there are."""
    import numpy as np
    from PIL import Image

    _ssr("sample", "--work", str(place / "sample"), "--train", "4", "--val", "1")
    config = (place / "sample/sample.toml").read_text()
    models = config[config.index("[clip]") :]
    classes = place / "sample/dataset/classes.toml"
    print("| entries | superpixels | cams | eval cams | refine |\n|---|---|---|---|---|")
    for count in entries:
        root = place / f"set-{count}"
        for name in ("images", "masks"):
            (root / name).mkdir(parents=True)
        photo = np.random.default_rng(0).integers(0, 255, (32, 48, 3)).astype(np.uint8)
        Image.fromarray(photo).save(root / "photo.jpg")
        Image.fromarray(np.zeros((32, 48), np.uint8)).save(root / "mask.png")
        lines = ["image,labels\n"]
        for number in range(count):
            os.link(root / "photo.jpg", root / f"images/{number:08d}.jpg")
            os.link(root / "mask.png", root / f"masks/{number:08d}.png")
            lines.append(f"{number:08d}.jpg,{('car', 'bus', 'car;bus')[number % 3]}\n")
        (root / "labels.csv").write_text("".join(lines))
        dataset = f'[dataset]\nkind = "folder"\nroot = "{root}"\nclasses = "{classes}"\n'
        (place / f"{count}.toml").write_text(dataset + models)
        held = [
            _peak(*stage, "--config", str(place / f"{count}.toml"), "--work", str(root / "work"), "--workers", "1")
            for stage in (("superpixels",), ("cams",), ("eval", "cams", "--no-pictures"), ("refine",))
        ]
        print(f"| {count:,} | {' | '.join(f'{value:.0f} MiB' for value in held)} |", flush=True)


def _peak(*words: str) -> float:
    """Most memory of the command's own process, MiB."""
    process = subprocess.Popen([*SSR, *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(said)
    return usage.ru_maxrss / 1024


def _list(entries: Sequence[int], place: Path) -> None:
    code = (
        "import resource, sys, time\nfrom pathlib import Path\nfrom pipelines.datasets.classes import VOC12\n"
        "from pipelines.datasets.label_stream import LabelStream\nfrom pipelines.datasets.share import Share\n"
        "from pipelines.stores.shard import Shard\nbefore = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "started = time.perf_counter()\nstream = LabelStream(Path(sys.argv[1]), VOC12, lambda one: Path('photos'))\n"
        "share = Share(stream, Shard(3, 100))\ncount, first = len(share), next(iter(share))\n"
        "opened = time.perf_counter() - started\nassert sum(1 for _ in share) == count\n"
        "held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before\n"
        "print(f'{len(stream):,} | {opened:.1f} s | {time.perf_counter() - started - opened:.1f} s | {held / 1024:.0f} MiB')\n"
    )
    print("| rows | opened, checked, first image of share 3/100 | walk over the share | memory |\n|---|---|---|---|")
    for count in entries:
        path = place / "labels.csv"
        with path.open("w") as file:
            file.write("image,labels\n")
            file.writelines(f"{number:010d}.jpg,{('cat', 'dog;person', 'car')[number % 3]}\n" for number in range(count))
        done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
        print(f"| {done.stdout.strip()} |", flush=True)


if __name__ == "__main__":
    main()
