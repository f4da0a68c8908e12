"""Ablations of the refinement and of its column mask, each row scored on all photos and on given subsets.

    python benchmarks/ablation.py --config my.toml --work runs/ablation [--images NAME=FILE.txt ...]

Needs ground truth. Encoders run once for CLIP-ES's CAM and once for the mixed one, whatever the number of rows.
Prints Markdown.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from pipelines.config import build_options, read_config, read_recipe
from pipelines.evaluation.report import Report
from pipelines.options.sources import ClipOptions, DatasetOptions, DinoOptions, Options, RunOptions
from pipelines.options.stages import CamsOptions, EvalOptions, RefineOptions, SuperpixelsOptions
from pipelines.stages import cams, evaluate, superpixels
from pipelines.stages.refine import stage as refine
from pipelines.workdir.workspace import Workspace
from ssr_cli.console import ConsoleProgress

AnyOptions = TypeVar("AnyOptions", bound=Options)

SEVEN = ("background", "cat", "cow", "dog", "horse", "sheep", "person")
"""VOC's well-populated classes in the small sample; the steadier number there."""

SSR = RefineOptions(**read_recipe("ssr")["refine"])
GATE = SSR.model_copy(update={"superpixel_mask": "gate", "power": 4})
PLAIN = SSR.model_copy(update={"superpixel_mask": "none", "power": 1})

CRF = {"boundary": "crf", "crf_scale": 1.0, "crf_iterations": 10}
"""CLIP-ES's CRF, at full resolution: that of the published tables."""

MIX_ROWS = {
    "clip-attention": PLAIN.model_copy(update={"dino_weight": 0.0}),
    "dino": PLAIN,
    "ssr": SSR,
    "ssr-crf": SSR.model_copy(update=CRF),
}
MASKS = {
    "none": {"superpixel_mask": "none"},
    "box": {"superpixel_mask": "none", "box_mask": True},
    "colour": {"superpixel_mask": "colour", "clusters": 5, "mask_threshold": 0.03},
    "colour-once": {"superpixel_mask": "colour", "clusters": 5, "mask_threshold": 0.03, "mask_every_step": False},
    "token": {"superpixel_mask": "token", "mask_threshold": 0.15},
    "gate": {"superpixel_mask": "gate"},
    "gate-once": {"superpixel_mask": "gate", "mask_every_step": False},
    "cluster": {"superpixel_mask": "cluster"},
}
MASK_ROWS = {
    f"mask-{name}-power-{power}": SSR.model_copy(update={**update, "power": power})
    for name, update in MASKS.items()
    for power in (1, 2, 4)
} | {
    f"mask-{name}-power-{power}-crf": SSR.model_copy(
        update={**MASKS[name], "power": power, **CRF, "boundary_background_power": 1.0}
    )
    for name in ("token", "gate", "cluster")
    for power in (2, 4)
}


def main() -> None:
    """Run every row and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="dataset, clip and dino sections")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--images", action="append", default=[], metavar="NAME=FILE.txt", help="also score these ids")
    parser.add_argument("--no-masks", action="store_true", help="leave out the ablation of the column mask")
    arguments = parser.parse_args()
    values, _ = read_config(arguments.config)
    base = workspace_of(values, arguments.work)
    subsets: dict[str, Path | None] = {"all": None}
    subsets |= {name: Path(file) for name, file in (entry.split("=", 1) for entry in arguments.images)}
    mix_rows = MIX_ROWS if arguments.no_masks else {**MIX_ROWS, **MASK_ROWS}
    rows = [
        *_rows(base, "gradcam", CamsOptions(), _gradcam_rows(base.dataset_options.kind), subsets),
        *_rows(base, "mix", CamsOptions(**read_recipe("ssr")["cams"]), mix_rows, subsets),
    ]
    _print(rows, list(subsets))


def _gradcam_rows(kind: str) -> dict[str, RefineOptions]:
    clip_es = RefineOptions(**read_recipe("clip-es-coco" if kind == "coco" else "clip-es")["refine"])
    return {"clip-es": clip_es, "clip-es-crf": clip_es.model_copy(update=CRF), "gradcam-gate": GATE}


def typed_options(kind: type[AnyOptions], values: dict, section: str) -> AnyOptions:
    """One section of a config as its options."""
    options = build_options(section, values.get(section, {}))
    assert isinstance(options, kind)
    return options


def workspace_of(values: dict, work: Path) -> Workspace:
    """Dataset, encoders and device of a config."""
    return Workspace(
        work=work,
        dataset_options=typed_options(DatasetOptions, values, "dataset"),
        clip=typed_options(ClipOptions, values, "clip"),
        dino=typed_options(DinoOptions, values, "dino"),
        run=typed_options(RunOptions, values, "run"),
    )


def _rows(
    base: Workspace, name: str, cam_options: CamsOptions, variants: dict[str, RefineOptions], subsets: dict[str, Path | None]
) -> Iterator[tuple[str, dict[str, Report]]]:
    work = dataclasses.replace(base, work=base.work / name)
    superpixels.run(work, SuperpixelsOptions(**read_recipe("ssr")["superpixels"]), ConsoleProgress())
    cams.run(work, cam_options, ConsoleProgress())
    oracle = EvalOptions(oracle=True, pictures=False)
    for number, label in enumerate((f"{name} CAM, p = 1", f"{name} CAM, oracle p")):
        yield (
            label,
            {
                subset: evaluate.run(work, "cams", oracle.model_copy(update={"images": ids}), 1.0)[number].report
                for subset, ids in subsets.items()
            },
        )
    targets = [refine.Target(options, work.work / variant) for variant, options in variants.items()]
    refine.run_targets(work, targets, ConsoleProgress())
    for variant in variants:
        place = dataclasses.replace(work, work=work.work / variant)
        yield (
            variant,
            {
                subset: evaluate.run(place, "masks", EvalOptions(images=ids, pictures=False), 1.0)[0].report
                for subset, ids in subsets.items()
            },
        )


def _print(rows: list[tuple[str, dict[str, Report]]], subsets: list[str]) -> None:
    head = " | ".join(f"{subset} ({rows[0][1][subset].images})" for subset in subsets)
    print(f"| row | {head} | P / R / FP:TP |\n|---|{'---|' * (len(subsets) + 1)}")
    for label, reports in rows:
        cells = [f"{100 * report.miou:.2f}{seven_classes(report)}" for report in reports.values()]
        whole = reports["all"]
        quality = f"{100 * (whole.precision or 0):.1f} / {100 * whole.recall:.1f} / {whole.confusion_ratio or 0:.3f}"
        power = f" (p = {whole.background_power:g})" if whole.oracle else ""
        print(f"| {label}{power} | {' | '.join(cells)} | {quality} |")
    print(
        "\nmIoU in %, fractions of classes in P and R"
        + (f"; after the slash: mean IoU of {', '.join(SEVEN)}" if seven_classes(rows[0][1]["all"]) else "")
    )
    sys.stdout.flush()


def seven_classes(report: Report) -> str:
    """Mean IoU of `SEVEN` after a slash, where the classes are VOC's."""
    values = [report.per_class_iou.get(name) for name in SEVEN]
    known = [value for value in values if value is not None]
    return f" / {100 * sum(known) / len(known):.2f}" if len(known) == len(SEVEN) and len(report.per_class_iou) == 21 else ""


if __name__ == "__main__":
    main()
