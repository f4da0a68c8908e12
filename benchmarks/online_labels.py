"""Label maps that `ssr train` makes of crops, with pixel-adaptive refinement (PAR) at several scales, against ground truth.

    python benchmarks/online_labels.py --config my.toml --work runs/labels [--crops 120] [--rows none 1x20 0.5x20 0.5x5]

A row is ``SCALExPASSES`` of PAR. The work directory needs superpixels. Every second crop is `even`, the others are `odd`:
choose on the one, confirm on the other. Opens ground truth for scoring alone. Prints Markdown: mIoU / 7cls, CPU seconds a
crop behind the refined CAM.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from ablation import seven_classes, workspace_of
from numpy.typing import NDArray

from pipelines.config import read_config, read_recipe
from pipelines.evaluation.confusion import confusion_counts
from pipelines.evaluation.metrics import metrics_from_counts
from pipelines.execution.devices import resolve_device
from pipelines.method.online_labels import OnlineLabels
from pipelines.options.align import AlignOptions
from pipelines.options.stages import CamsOptions, RefineOptions
from pipelines.options.train import TrainOptions
from pipelines.stages.train.inputs import train_inputs
from pipelines.stages.train.settings import TrainSections
from pipelines.training.processes import Processes

ROWS = ("none", "1x20", "1x10", "0.5x20", "0.5x10", "0.5x5", "0.5x3")
PARTS = ("all", "even", "odd")


def main() -> None:
    """Label the same crops by every row, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="dataset, clip and dino sections")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--crops", type=int, default=120)
    parser.add_argument("--rows", nargs="+", default=list(ROWS), metavar="SCALExPASSES")
    arguments = parser.parse_args()
    values, _ = read_config(arguments.config)
    workspace = workspace_of(values, arguments.work)
    recipe, options = read_recipe("ssr"), TrainOptions()
    sections = TrainSections(options, AlignOptions(), CamsOptions(**recipe["cams"]), RefineOptions(**recipe["refine"]))
    names = workspace.dataset.classes.label_map_names
    counts = {(row, part): np.zeros((len(names), len(names) + 1), np.int64) for row in arguments.rows for part in PARTS}
    seconds, done = dict.fromkeys(arguments.rows, 0.0), 0
    with ExitStack() as stack:
        device = resolve_device(workspace.run.device)
        inputs = train_inputs(workspace, sections.checked(workspace), device, Processes(), stack)
        with_truth = options.model_copy(update={"supervision": "masks"})
        for _, crops, _ in dataclasses.replace(inputs.source, options=with_truth).steps(0, Processes()):
            evidence = inputs.encoders.encode([crop.photo for crop in crops])
            OnlineLabels(sections.cams, sections.refine, options).refined(
                crops, evidence
            )  # so that no row pays for the first call
            for row in arguments.rows:
                labels = OnlineLabels(sections.cams, sections.refine, _options(row))
                began = time.process_time()
                labels.refined(crops, evidence)
                refined = time.process_time()
                found = labels(crops, evidence).labels.cpu().numpy()
                seconds[row] += time.process_time() - refined - (refined - began)
                for number, (crop, label) in enumerate(zip(crops, found, strict=True), start=done):
                    assert crop.target is not None
                    scored = _scored(label, crop.target.numpy(), len(names))
                    for part in ("all", PARTS[1 + number % 2]):
                        counts[row, part] += scored
            done += len(crops)
            if done >= arguments.crops:
                break
    print(f"\n**{done} crops**\n\n| PAR | {' | '.join(PARTS)} | s a crop |\n|{'---|' * (len(PARTS) + 2)}")
    for row in arguments.rows:
        scores = [metrics_from_counts(counts[row, part], names) for part in PARTS]
        cells = [f"{100 * metrics.miou:.2f}{seven_classes(metrics)}" for metrics in scores]
        print(f"| {row} | {' | '.join(cells)} | {seconds[row] / done:.3f} |")


def _options(row: str) -> TrainOptions:
    scale, _, passes = row.partition("x")
    return TrainOptions(par_iterations=0) if row == "none" else TrainOptions(par_scale=float(scale), par_iterations=int(passes))


def _scored(label: NDArray[np.int64], truth: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    return confusion_counts(label.astype(np.uint8), truth.astype(np.uint8), classes)


if __name__ == "__main__":
    main()
