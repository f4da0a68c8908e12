"""What each stage costs a photo, in units of one fp32 pass of the bare CLIP image tower.

    python benchmarks/speed.py --config my.toml [--count 24] [--rounds 2] [--precision bf16] [--recipe ssr]

Each row is a command, run as a user runs it on COUNT photos and on one of them; the difference divided by COUNT - 1 is what a
photo costs, without loading and without start-up. On a CPU the cost is CPU seconds of the command and its workers, one thread
each; on a GPU it is seconds of wall time. Rounds alternate and medians are printed. Prints Markdown.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch
from ablation import workspace_of

from pipelines.config import read_config
from pipelines.datasets.base import Sample
from pipelines.datasets.image import load_image
from pipelines.encoders.clip import ClipEncoder
from pipelines.encoders.dino import DinoEncoder
from pipelines.encoders.image import encoder_input, token_grid
from pipelines.encoders.open_clip_vit import OpenClipViT
from pipelines.encoders.weights import build_clip, build_dino, resolve_clip, resolve_dino
from pipelines.execution.devices import resolve_device, resolve_dtype
from pipelines.execution.pool import THREADS
from pipelines.workdir.workspace import Workspace

Costs = dict[str, list[tuple[float, float]]]
"""Row -> a pair for each round: seconds a photo, and GiB that the largest process held at most."""

UNIT = "CLIP tower, fp32"
MASKS = "`ssr masks` with CRF"
ROWS = {
    "superpixels": ("superpixels",),
    "cams": ("cams",),
    "refine": ("refine", "--boundary", "none"),
    "CRF": ("refine", "--boundary", "crf", "--force"),  # keeps the refined CAMs and makes the masks again
    MASKS: ("masks", "--boundary", "crf"),
}
"""Row -> command; `MASKS` makes what the rows above it make, in a work directory of its own."""


def main() -> None:
    """Run all rows and print a table for each recipe."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--count", type=int, default=24, help="photos, evenly spread over the split")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16"))
    parser.add_argument("--recipe", nargs="+", default=["ssr", "clip-es"])
    arguments = parser.parse_args()
    os.environ |= dict.fromkeys(THREADS, "1")
    torch.set_num_threads(1)
    values, _ = read_config(arguments.config)
    workspace = workspace_of(values, Path())
    device = resolve_device(workspace.run.device)
    samples = workspace.dataset.samples
    chosen = [samples[i * len(samples) // arguments.count] for i in range(min(arguments.count, len(samples)))]
    flags = ["--config", str(arguments.config), "--precision", arguments.precision, "--workers", "1"]
    towers: Costs = defaultdict(list)
    recipes: dict[str, Costs] = {recipe: defaultdict(list) for recipe in arguments.recipe}
    for _ in range(arguments.rounds):
        for row, seconds in bare_towers(workspace, chosen, device).items():
            towers[row].append((seconds, 0.0))
        for recipe, costs in recipes.items():
            with tempfile.TemporaryDirectory() as folder:
                for row, command in ROWS.items():
                    if row == "superpixels" and recipe.startswith("clip-es"):
                        continue
                    place = "masks" if row == MASKS else "stages"
                    options = [*flags, "--recipe", recipe]
                    costs[row].append(of_a_photo([*command, *options], Path(folder) / place, chosen, device))
    dtype = str(resolve_dtype(arguments.precision, device)).removeprefix("torch.")
    print(f"{len(chosen)} photos, device {device}, {dtype}, one thread a process, {arguments.rounds} rounds")
    report(towers, recipes)


def bare_towers(workspace: Workspace, chosen: Sequence[Sample], device: torch.device) -> dict[str, float]:
    """Seconds a photo of the libraries' own forward passes, over decoded and resized photos."""
    images = [load_image(sample.image_path) for sample in chosen]
    seconds: dict[str, float] = {}
    for dtype, name in ((torch.float32, "fp32"), (torch.bfloat16, "bf16")):
        clip = ClipEncoder(build_clip(resolve_clip(workspace.clip.model, workspace.clip.pretrained)), device)
        dino_weights = resolve_dino(workspace.dino.model, workspace.dino.pretrained)
        dino = DinoEncoder(dino_weights, device)
        grids = [token_grid(image.height, image.width, clip.patch_size) for image in images]
        tables = (
            {grid: clip.tower.position_embedding(grid)[0].to(device, dtype) for grid in set(grids)}
            if isinstance(clip.tower, OpenClipViT)
            else {}
        )
        towers = {"CLIP": (clip, clip.model.to(dtype)), "DINO": (dino, build_dino(dino_weights).to(device, dtype).eval())}
        for what, (encoder, model) in towers.items():
            total = 0.0
            for index, (image, grid) in enumerate([(images[0], grids[0]), *zip(images, grids, strict=True)]):
                pixels = encoder_input(image, grid, encoder.patch_size, encoder.mean, encoder.std)[None].to(device, dtype)
                if encoder is clip and tables:
                    model.positional_embedding = torch.nn.Parameter(tables[grid], requires_grad=False)
                start = _clock(device)
                with torch.inference_mode():
                    model(pixels)
                total += _clock(device) - start if index else 0.0  # the first pass warms up
            seconds[f"{what} tower, {name}"] = total / len(chosen)
    return seconds


def _clock(device: torch.device) -> float:
    if device.type != "cuda":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def of_a_photo(command: list[str], work: Path, chosen: Sequence[Sample], device: torch.device) -> tuple[float, float]:
    """Seconds a photo and GiB of a command."""
    seconds = []
    for count in (1, len(chosen)):
        ids = work.with_name(f"{count}.txt")
        ids.write_text("".join(f"{sample.image_id}\n" for sample in chosen[:count]))
        run = [sys.executable, "-m", "ssr_cli", *command, "--split", str(ids), "--work", f"{work}-{count}"]
        with tempfile.TemporaryFile("w+") as words:
            start = time.perf_counter()
            process = subprocess.Popen(run, stdout=words, stderr=words)
            _, status, usage = os.wait4(process.pid, 0)  # counts the workers too, for the command has waited for them
            wall = time.perf_counter() - start
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode:
                words.seek(0)
                raise SystemExit(f"{' '.join(run)} failed:\n{words.read()}")
        seconds.append(wall if device.type == "cuda" else usage.ru_utime + usage.ru_stime)
    return (seconds[1] - seconds[0]) / (len(chosen) - 1), usage.ru_maxrss / 2**20


def report(towers: Costs, recipes: dict[str, Costs]) -> None:
    """Print the tables."""
    unit = statistics.median(seconds for seconds, _ in towers[UNIT])
    print("\n| | seconds a photo | CLIP tower = 1 | GiB |\n|---|---|---|---|")
    for row, rounds in towers.items():
        _line(row, statistics.median(seconds for seconds, _ in rounds), unit, 0)
    for recipe, costs in recipes.items():
        median = {row: statistics.median(seconds for seconds, _ in rounds) for row, rounds in costs.items()}
        memory = {row: max(held for _, held in rounds) for row, rounds in costs.items()}
        for row in costs:
            if row == MASKS:
                alone = [other for other in costs if other != MASKS]
                _line(f"{recipe}: these stages", sum(median[other] for other in alone), unit, max(memory[o] for o in alone))
            _line(f"{recipe}: {row}", median[row], unit, memory[row])


def _line(row: str, seconds: float, unit: float, memory: float) -> None:
    print(f"| {row} | {seconds:.3f} | {seconds / unit:.2f} | {f'{memory:.2f}' if memory else ''} |")


if __name__ == "__main__":
    main()
