"""Seconds and memory of each stage beside the bare encoders, over the same photos in one run.

    python benchmarks/speed.py --config my.toml [--count 24]

Prints Markdown. The bare towers are open_clip's and timm's own forward passes over decoded, resized photos; the stages
include decoding, stores and masks. Rounds alternate and medians are printed: on a busy machine only ratios mean something.
"""

from __future__ import annotations

import argparse
import dataclasses
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from pipelines.config import build_options, read_config, read_recipe
from pipelines.datasets.image import load_image
from pipelines.encoders.clip import ClipEncoder
from pipelines.encoders.dino import DinoEncoder
from pipelines.encoders.image import encoder_input, token_grid
from pipelines.encoders.weights import build_clip, build_dino, resolve_clip, resolve_dino
from pipelines.execution.devices import resolve_device, resolve_dtype
from pipelines.execution.progress import Silent
from pipelines.options.sources import ClipOptions, DatasetOptions, DinoOptions, RunOptions
from pipelines.options.stages import CamsOptions, RefineOptions, SuperpixelsOptions
from pipelines.stages import cams, superpixels
from pipelines.stages.refine import stage as refine
from pipelines.workdir.workspace import Workspace


def main() -> None:
    """Time everything and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--count", type=int, default=24, help="photos, evenly spread over the split")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    values, _ = read_config(arguments.config)
    with tempfile.TemporaryDirectory() as folder:
        base = Workspace(
            work=Path(folder) / "work",
            dataset_options=DatasetOptions.model_validate(build_options("dataset", values.get("dataset", {})).model_dump()),
            clip=ClipOptions.model_validate(build_options("clip", values.get("clip", {})).model_dump()),
            dino=DinoOptions.model_validate(build_options("dino", values.get("dino", {})).model_dump()),
            run=RunOptions.model_validate(build_options("run", values.get("run", {})).model_dump()),
        )
        _report(_measure(base, arguments.count, arguments.rounds), base)


class Clock(Silent):
    """Times a stage from its first image to its last: loading the models is left out."""

    seconds = 0.0

    def start(self, title: str, total: int, done: int = 0) -> None:
        """Start the clock."""
        self._started = time.perf_counter()

    def finish(self) -> None:
        """Stop it."""
        self.seconds = time.perf_counter() - self._started


def _measure(base: Workspace, count: int, rounds: int) -> tuple[dict[str, list[float]], int]:
    samples = base.dataset.samples
    chosen = [samples[i * len(samples) // count] for i in range(min(count, len(samples)))]
    listed = base.work.parent / "ids.txt"
    listed.write_text("".join(f"{sample.image_id}\n" for sample in chosen))
    base = dataclasses.replace(base, dataset_options=base.dataset_options.model_copy(update={"split": str(listed)}))
    device = resolve_device(base.run.device)
    dtype = resolve_dtype(base.run.precision, device)
    clip = ClipEncoder(build_clip(resolve_clip(base.clip.model, base.clip.pretrained)), device)
    tower = clip.model.to(dtype)
    dino_weights = resolve_dino(base.dino.model, base.dino.pretrained)
    dino = DinoEncoder(dino_weights, device, dtype)
    model = build_dino(dino_weights).to(device, dtype).eval()
    images = [load_image(sample.image_path) for sample in chosen]
    grids = [token_grid(image.height, image.width, clip.patch_size) for image in images]
    clip_inputs = [
        encoder_input(i, g, clip.patch_size, clip.mean, clip.std)[None].to(device, dtype)
        for i, g in zip(images, grids, strict=True)
    ]
    dino_inputs = [
        encoder_input(i, g, dino.patch_size, dino.mean, dino.std)[None].to(device, dtype)
        for i, g in zip(images, grids, strict=True)
    ]
    positions = {grid: torch.nn.Parameter(clip.position_embedding(grid)[0].to(device, dtype), False) for grid in set(grids)}

    @torch.inference_mode()
    def bare_clip() -> None:
        for pixels, grid in zip(clip_inputs, grids, strict=True):
            tower.positional_embedding = positions[grid]
            tower(pixels)
        _wait(device)

    @torch.inference_mode()
    def bare_dino() -> None:
        for pixels in dino_inputs:
            model(pixels)
        _wait(device)

    clip_es, ssr = (
        (CamsOptions(**read_recipe(name).get("cams", {})), RefineOptions(**read_recipe(name)["refine"]))
        for name in ("clip-es", "ssr")
    )
    superpixel_options = SuperpixelsOptions(**read_recipe("ssr")["superpixels"])

    def fresh(name: str) -> Workspace:
        return dataclasses.replace(base, work=base.work / name, force=True)

    seconds: dict[str, list[float]] = {}

    def timed(name: str, action: Callable[[Clock], object]) -> None:
        clock = Clock()
        start = time.perf_counter()
        action(clock)
        whole = time.perf_counter() - start
        seconds.setdefault(name, []).append(clock.seconds or whole)

    bare_clip()
    bare_dino()
    for number in range(rounds):
        a, b = fresh(f"a{number}"), fresh(f"b{number}")
        timed("bare CLIP tower", lambda _: bare_clip())
        timed("bare DINO", lambda _: bare_dino())
        timed("superpixels", lambda clock, b=b: superpixels.run(b, superpixel_options, clock))
        timed("cams, clip-es", lambda clock, a=a: cams.run(a, clip_es[0], clock))
        timed("cams, ssr", lambda clock, b=b: cams.run(b, ssr[0], clock))
        timed("refine, clip-es", lambda clock, a=a: refine.run(a, clip_es[1], clock))
        timed("refine, ssr", lambda clock, b=b: refine.run(b, ssr[1], clock))
        timed("CRF alone", lambda clock, b=b: refine.run(b, ssr[1].model_copy(update={"boundary": "crf"}), clock))
    return seconds, len(chosen)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _report(measured: tuple[dict[str, list[float]], int], base: Workspace) -> None:
    seconds, count = measured
    median = {name: statistics.median(values) for name, values in seconds.items()}
    clip, both = median["bare CLIP tower"], median["bare CLIP tower"] + median["bare DINO"]
    against = {"cams, clip-es": clip, "cams, ssr": clip, "refine, clip-es": both, "refine, ssr": both}
    threads = f"{torch.get_num_threads()} threads"
    print(f"{count} photos, device {resolve_device(base.run.device)}, {threads}, precision {base.run.precision}\n")
    print("| | seconds a photo | x bare |\n|---|---|---|")
    for name, value in median.items():
        what = "CLIP + DINO" if name.startswith("refine") else "CLIP"
        ratio = f"{value / against[name]:.2f} ({what})" if name in against else ""
        print(f"| {name} | {value / count:.3f} | {ratio} |")
    print(f"\npeak memory of the process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB", end="")
    if torch.cuda.is_available():
        print(f", of the GPU {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB", end="")
    print("\nStages are timed from the first image to the last: decoding, stores and masks included, loading the models not.")


if __name__ == "__main__":
    main()
