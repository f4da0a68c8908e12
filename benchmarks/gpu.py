"""What one GPU makes of each stage: throughput, memory, precision, and what 10,582 images of VOC train_aug would take.

    python benchmarks/gpu.py --config my.toml [--count 400] [--steps 400] [--minutes 8] [--tables NAME ...]

Each stage is run as a user runs it, on COUNT images and on a quarter of them; the difference of the wall times is that of the
other images, without loading and without the start of worker processes. The share of time in which the GPU computes comes from
torch's profiler in a third run. A table whose turn comes after MINUTES is left out, and that is said. Without a GPU
it runs on the CPU, for a trial: give few images and steps. Prints Markdown.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from ablation import workspace_of
from PIL import Image
from torch.profiler import ProfilerActivity, profile
from typer.testing import CliRunner

from pipelines.config import read_config
from pipelines.execution.devices import peak_memory, resolve_device, resolve_dtype
from pipelines.stores.array_store import ArrayReader
from pipelines.stores.image_arrays import read_cam
from ssr_cli.app import app

TRAIN_AUG = 10_582
STAGES = {
    # row: command, and the work directory it works in
    "superpixels": (("superpixels",), "stages"),
    "cams": (("cams",), "stages"),
    "refine": (("refine", "--boundary", "none"), "stages"),
    "CRF, masks": (("refine", "--boundary", "crf", "--force"), "stages"),
    "PAR, masks": (("refine", "--boundary", "par", "--force"), "stages"),
    "`ssr masks`, all of it": (("masks", "--boundary", "crf"), "masks"),
    "cams, clip-es": (("cams", "--recipe", "clip-es"), "clip-es"),
    "refine, clip-es": (("refine", "--recipe", "clip-es"), "clip-es"),
}


@dataclass(frozen=True)
class Run:
    """A finished command: wall seconds, the GPU's seconds of computing, and its memory in words."""

    wall: float
    busy: float
    memory: str


class Bench:
    """Runs commands on lists of images.

    Args:
        config: Dataset and weights.
        folder: For work directories and lists.
        images: Ids, the most that any row uses.
    """

    def __init__(self, config: Path, folder: Path, images: Sequence[str]) -> None:
        self.config, self.folder, self.images = config, folder, images
        self.device = resolve_device("auto")

    def run(self, command: Sequence[str], work: str, count: int, *flags: str, profiled: bool = False) -> Run:
        """One command on the first ``count`` images, in a work directory for that number.

        Args:
            command: Its words after ``ssr``, without the config.
            work: Name of the work directory.
            count: Number of images.
            flags: More words.
            profiled: Measure how long the GPU computes; the events of a long run take minutes to add up.
        """
        listed = self.folder / f"{count}.txt"
        listed.write_text("".join(f"{image}\n" for image in self.images[:count]))
        place = ("--config", str(self.config), "--split", str(listed), "--work", str(self.work(work, count)))
        gpu = self.device.type == "cuda"
        if gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        with profile(activities=[ProfilerActivity.CUDA]) if gpu and profiled else nullcontext() as profiler:
            start = time.perf_counter()
            result = CliRunner().invoke(app, [*command, *place, *flags])
            wall = time.perf_counter() - start
        if result.exit_code:
            raise SystemExit(f"ssr {' '.join([*command, *place, *flags])} failed:\n{result.output}")
        busy = sum(event.self_device_time_total for event in profiler.key_averages()) / 1e6 if profiler else 0.0
        return Run(wall, busy, peak_memory(self.device))

    def work(self, name: str, count: int) -> Path:
        """Its work directory."""
        return self.folder / f"{name}-{count}"


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--count", type=int, default=400, help="images of the table of stages, at most those of the split")
    parser.add_argument("--compared", type=int, default=16, help="images of the table of precisions, which the CPU makes too")
    parser.add_argument("--steps", type=int, default=400, help="steps of `ssr train`; the table scales to 1,000")
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    arguments = parser.parse_args()
    values, _ = read_config(arguments.config)
    workspace = workspace_of(values, Path())
    images = [sample.image_id for sample in workspace.dataset.samples[: max(arguments.count, arguments.compared)]]
    arguments.count = min(arguments.count, len(images))
    end = time.monotonic() + 60 * arguments.minutes

    @contextmanager
    def section(title: str) -> Iterator[None]:
        start = time.monotonic()
        print(f"\n### {title}\n", flush=True)
        yield
        print(f"\n({time.monotonic() - start:.0f} s)", flush=True)

    def in_time(title: str) -> bool:
        if time.monotonic() < end:
            return True
        print(f"\n{title}: left out, the {arguments.minutes:g} minutes are over", flush=True)
        return False

    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(arguments.config.absolute(), Path(folder), images)
        name = torch.cuda.get_device_name() if bench.device.type == "cuda" else "CPU"
        precision = str(resolve_dtype(workspace.run.precision, bench.device)).removeprefix("torch.")
        print(f"{name}, torch {torch.__version__}, {precision}, {len(images)} images")
        for title in arguments.tables:
            if in_time(title):
                with section(title.capitalize()):
                    TABLES[title](bench, arguments)


def stages(bench: Bench, count: int) -> None:
    """Images a second, share of time in which the GPU computes, memory, start, and minutes for VOC train_aug."""
    print(f"| | images a second | GPU busy | memory | start | {TRAIN_AUG:,} images |\n|---|---|---|---|---|---|")
    quarter = max(1, count // 4)
    for row, (command, work) in STAGES.items():
        computing = bench.run(command, f"{work}-profiled", quarter, profiled=True)  # the first: kernels are compiled here
        few, many = (bench.run(command, work, number) for number in (quarter, count))
        seconds = (many.wall - few.wall) / (count - quarter)
        busy = f"{computing.busy / quarter / seconds:.0%}" if computing.busy else ""
        start = few.wall - quarter * seconds
        whole = (start + TRAIN_AUG * seconds) / 60
        print(f"| {row} | {1 / seconds:.1f} | {busy} | {many.memory} | {start:.1f} s | {whole:.1f} min |", flush=True)


def precisions(bench: Bench, count: int) -> None:
    """How far bf16 and the CPU are from fp32 on this device."""
    device = str(bench.device)
    runs = {f"{device} fp32": (device, "fp32"), f"{device} bf16": (device, "bf16"), "cpu fp32": ("cpu", "fp32")}
    for name, (where, precision) in runs.items():
        bench.run(("masks", "--boundary", "none"), name, count, "--device", where, "--precision", precision)
    first = next(iter(runs))
    print(f"against {first}, {count} images\n\n| | CAM, mean / largest | refined, mean / largest | pixels of another class |")
    print("|---|---|---|---|")
    for name in list(runs)[1:]:
        cells = [
            difference(bench.work(first, count) / f"{store}.h5", bench.work(name, count) / f"{store}.h5")
            for store in ("cams", "refined")
        ]
        pairs = [
            (path, bench.work(name, count) / "masks" / path.name) for path in (bench.work(first, count) / "masks").glob("*.png")
        ]
        other = np.mean([(np.asarray(Image.open(a)) != np.asarray(Image.open(b))).mean() for a, b in pairs])
        print(f"| {name} | {cells[0]} | {cells[1]} | {other:.2%} |", flush=True)


def difference(first: Path, second: Path) -> str:
    """Mean and largest absolute difference of all maps of two stores."""
    with ArrayReader(first) as a, ArrayReader(second) as b:
        pairs = [(read_cam(a, image_id)[0], read_cam(b, image_id)[0]) for image_id in a.ids()]
    gaps = np.concatenate([np.abs(x.astype(np.float32) - y.astype(np.float32)).ravel() for x, y in pairs])
    return f"{gaps.mean():.4f} / {gaps.max():.3f}"


def training(bench: Bench, count: int, steps: int) -> None:
    """Alignment heads of all images, and steps of the segmentation model."""
    print("| | seconds | memory |\n|---|---|---|")
    bench.run(("superpixels",), "stages", count)  # unless the table of stages has made them
    align = bench.run(("align",), "stages", count)
    print(
        f"| `ssr align`, {count} images, collecting and training | {align.wall:.0f} | {align.memory} |",
        flush=True,
    )
    for row, flags in {"": (), ", aligned": ("--ckpt", "auto")}.items():
        command = ("train", *flags, "--resume", "never", "--force", "--iterations")
        quarter = max(1, steps // 4)
        few, many = (bench.run((*command, str(number)), "stages", count) for number in (quarter, steps))
        scaled = (many.wall - few.wall) / max(1, steps - quarter) * 1000
        print(f"| 1,000 steps of `ssr train`{row} | {scaled:.0f} | {many.memory} |", flush=True)


TABLES: dict[str, Callable[[Bench, argparse.Namespace], None]] = {
    "stages": lambda bench, arguments: stages(bench, arguments.count),
    "precision": lambda bench, arguments: precisions(bench, arguments.compared),
    "training": lambda bench, arguments: training(bench, arguments.count, arguments.steps),
}

if __name__ == "__main__":
    main()
