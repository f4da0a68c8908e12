"""How much of the error the least confident masks hold: `ssr review`'s confidence against ground truth.

    python benchmarks/review.py --config my.toml --split val --work runs/val

The work directory has CAMs, refined CAMs and masks, as `ssr masks` leaves them. Ground truth is opened for scoring.

The error of a mask is 1 - IoU of its class in its photo; of a photo, the mean over its classes. "found" is the share of all
error in the 10, 20 and 30 % least confident; "area" the mean error of what is kept, over all shares that are taken away, and
"gain" where it lies between random order (0) and the best possible one (1).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from ablation import workspace_of
from numpy.typing import NDArray

from pipelines.config import read_config
from pipelines.evaluation.ground_truth import read_mask
from pipelines.stages.review import Confidences
from pipelines.workdir.workspace import Workspace

Rows = list[tuple[int, float, float]]
"""Place of the photo in the list, confidence, error."""


def measured(workspace: Workspace) -> Rows:
    rows: Rows = []
    classes = workspace.dataset.classes.names
    with Confidences(workspace) as confidences:
        for place, sample in enumerate(workspace.dataset.samples):
            path, truth_path = workspace.masks / f"{sample.image_id}.png", workspace.dataset.mask_path(sample.image_id)
            if not path.is_file() or truth_path is None:
                continue
            mask, truth = read_mask(path, len(classes)), read_mask(truth_path, len(classes))
            known = truth != 255
            for index, confidence in confidences(sample.image_id, mask).items():
                ours, theirs = (mask == index + 1) & known, (truth == index + 1) & known
                joined = (ours | theirs).sum()
                rows.append((place, confidence, 1 - float((ours & theirs).sum() / joined) if joined else 0.0))
    return rows


def area(error: NDArray[np.float64], order: NDArray[np.intp]) -> float:
    """Mean error of the first 1, 2, ... of an order, averaged."""
    return float((error[order].cumsum() / np.arange(1, len(error) + 1)).mean())


def line(name: str, confidence: NDArray[np.float64], error: NDArray[np.float64]) -> str:
    order, best = np.argsort(-confidence, kind="stable"), np.argsort(error, kind="stable")

    def found(order: NDArray[np.intp]) -> str:
        worst = error[order[::-1]].cumsum() / error.sum()
        return " / ".join(f"{100 * worst[max(0, round(len(error) * share) - 1)]:.0f}" for share in (0.1, 0.2, 0.3))

    ours, random, least = area(error, order), float(error.mean()), area(error, best)
    gain = (random - ours) / (random - least)
    return f"| {name} | {len(error)} | {found(order)} | {found(best)} | {ours:.3f} | {random:.3f} | {least:.3f} | {gain:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--split", required=True)
    parser.add_argument("--work", type=Path, required=True)
    arguments = parser.parse_args()
    print("| | count | found | found by the best order | area | random | best | gain |\n|---|---|---|---|---|---|---|---|")
    values, _ = read_config(arguments.config)
    values["dataset"] = {**values.get("dataset", {}), "split": arguments.split}
    rows = measured(workspace_of(values, arguments.work))
    places = np.array([row[0] for row in rows])
    confidence, error = (np.array([row[column] for row in rows]) for column in (1, 2))
    for half, chosen in {"all": places >= 0, "even": places % 2 == 0, "odd": places % 2 == 1}.items():
        print(line(f"{arguments.split}, {half}, masks", confidence[chosen], error[chosen]))
    photos = [places == place for place in np.unique(places)]
    lowest, mean = (
        np.array([of(values[photo]) for photo in photos]) for of, values in ((np.min, confidence), (np.mean, error))
    )
    print(line(f"{arguments.split}, images", lowest, mean))


if __name__ == "__main__":
    main()
