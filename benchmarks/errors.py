"""Which kind of error label maps hold: the outline, the class, or small objects that were missed.

    python benchmarks/errors.py --config my.toml --split val NAME=FOLDER.masks ...

Needs ground truth and folders of label maps, ``ID.png``. Prints Markdown.

*Outline mended*: pixels are background where the ground truth has background, and elsewhere of the predicted class, or, where
background was predicted, of the photo's class that the nearest foreground was given. *Class mended*: the predicted foreground
takes the classes of the ground truth (a pixel that is background there keeps its class). What each raises the score by is what
errors of that kind cost.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from ablation import SEVEN, workspace_of
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from skimage.measure import label

from pipelines.config import read_config
from pipelines.evaluation.confusion import confusion_counts
from pipelines.evaluation.ground_truth import read_mask
from pipelines.evaluation.metrics import Metrics, metrics_from_counts

IGNORED = 255
SMALL = 0.01
"""Objects, connected regions of one class, below this share of the photo are small."""


def main() -> None:
    """Score every folder and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="dataset section")
    parser.add_argument("--split", help="in place of the config's")
    parser.add_argument("masks", nargs="+", metavar="NAME=FOLDER", help="label maps")
    arguments = parser.parse_args()
    values, _ = read_config(arguments.config)
    if arguments.split:
        values["dataset"]["split"] = arguments.split
    dataset = workspace_of(values, Path("unused")).dataset
    names = dataset.classes.label_map_names
    print("| label maps | as they are | outline mended | class mended | pixels found of small, other objects |")
    print("|---|---|---|---|---|")
    classes: dict[str, Metrics] = {}
    for entry in arguments.masks:
        title, folder = entry.split("=", 1)
        counts = np.zeros((3, len(names), len(names) + 1), np.int64)
        objects = np.zeros((2, 2), np.int64)  # small or not, found or all
        for sample in dataset.samples:
            truth = read_mask(dataset.mask_path(sample.image_id))
            mask = read_mask(Path(folder) / f"{sample.image_id}.png")
            for kind, prediction in enumerate((mask, outline_mended(mask, truth), class_mended(mask, truth))):
                counts[kind] += confusion_counts(prediction, truth, len(names))
            objects += found_pixels(mask, truth)
        scores = [metrics_from_counts(of_kind, names) for of_kind in counts]
        classes[title] = scores[0]
        shares = " / ".join(f"{100 * found / max(1, whole):.1f}" for found, whole in objects)
        print(f"| {title} | {' | '.join(cell(score) for score in scores)} | {shares} |")
    print(f"\n| IoU (precision / recall) | {' | '.join(classes)} |\n|---|{'---|' * len(classes)}")
    for name in names:
        if any(score.per_class_iou.get(name) is not None for score in classes.values()):
            print(f"| {name} | {' | '.join(of_class(score, name) for score in classes.values())} |")


def outline_mended(mask: NDArray[np.uint8], truth: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The predicted classes inside the true foreground."""
    foreground = (mask > 0) & (mask < IGNORED)
    filled = mask
    if foreground.any():
        rows, columns = distance_transform_edt(~foreground, return_distances=False, return_indices=True)
        filled = mask[rows, columns]
    return np.where(truth == 0, 0, filled).astype(np.uint8)


def class_mended(mask: NDArray[np.uint8], truth: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The true classes inside the predicted foreground."""
    return np.where((mask > 0) & (truth > 0) & (truth < IGNORED), truth, mask).astype(np.uint8)


def found_pixels(mask: NDArray[np.uint8], truth: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Pixels that got their class, and all, of small objects and of the others, ``(2, 2)``."""
    objects = label(np.where(truth == IGNORED, 0, truth), background=0, connectivity=2)
    sizes = np.bincount(objects.ravel())
    small = sizes < SMALL * truth.size
    inside = objects > 0
    right = inside & (mask == truth)
    of_small = small[objects]
    return np.array(
        [
            [(right & of_small).sum(), (inside & of_small).sum()],
            [(right & ~of_small).sum(), (inside & ~of_small).sum()],
        ]
    )


def cell(score: Metrics) -> str:
    """mIoU and, where the classes are VOC's, the mean of seven of them."""
    values = [score.per_class_iou.get(name) for name in SEVEN]
    known = [value for value in values if value is not None]
    seven = f" / {100 * sum(known) / len(known):.2f}" if len(known) == len(SEVEN) and len(score.per_class_iou) == 21 else ""
    return f"{100 * score.miou:.2f}{seven}"


def of_class(score: Metrics, name: str) -> str:
    """IoU, precision and recall of one class."""
    numbers = (score.per_class_iou.get(name), score.per_class_precision.get(name), score.per_class_recall.get(name))
    iou, precision, recall = ("-" if number is None else f"{100 * number:.1f}" for number in numbers)
    return f"{iou} ({precision} / {recall})"


if __name__ == "__main__":
    main()
