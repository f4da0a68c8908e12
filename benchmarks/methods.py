"""Every training-free recipe, and parts of them together, on the same photos in one pass of the encoders.

    python benchmarks/methods.py --config my.toml --split val [--images even=FILE.txt ...] [--crf] [--ckpt HEADS] \
        [--methods NAME ...]

Needs ground truth. Prints Markdown: scores of the CAM, of the refined CAM and after the CRF, and CPU seconds a photo: those of
the encoder passes that a method needs, and those of its own parts.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from ablation import SEVEN, workspace_of
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pipelines.config import read_config, read_recipe
from pipelines.datasets.base import Sample
from pipelines.datasets.image import load_image
from pipelines.datasets.splits import read_split
from pipelines.evaluation.confusion import confusion_counts
from pipelines.evaluation.ground_truth import read_mask
from pipelines.evaluation.metrics import Metrics, metrics_from_counts
from pipelines.execution.devices import resolve_device
from pipelines.method.composition import initial_cams, refined_cams
from pipelines.method.encoders import Blocks, Encoders
from pipelines.method.evidence import CLIP_NEEDS, DINO_NEEDS, Evidence, Needs
from pipelines.method.label_maps import pseudo_mask
from pipelines.method.loading import FrozenModels
from pipelines.method.parts_in_use import cam_needs, refine_needs
from pipelines.ops.slic import slic_superpixels
from pipelines.options.stages import CamsOptions, RefineOptions, SuperpixelsOptions
from pipelines.workdir.settings import model_sources
from pipelines.workdir.workspace import Workspace

Result = TypeVar("Result")
STAGES = ("CAM", "refined", "+ CRF")


@dataclasses.dataclass(frozen=True)
class Method:
    """One row of the table.

    Attributes:
        recipe: What it starts from.
        cams: Changes to ``[cams]``.
        refine: Changes to ``[refine]``.
        aligned: Reads its CAM through alignment heads (``--ckpt``).
    """

    recipe: str
    cams: dict[str, Any] = dataclasses.field(default_factory=dict)
    refine: dict[str, Any] = dataclasses.field(default_factory=dict)
    aligned: bool = False


CDA = {"affinity_filter": "cda"}
CDA_FOR_MASK = {**CDA, "cda_kappa": 4.0, "superpixel_mask": "none"}
METHODS: dict[str, Method] = {
    "clip-es": Method("clip-es"),
    "clip-es, no box": Method("clip-es", refine={"box_mask": False}),
    "clip-es + CDA": Method("clip-es", refine=CDA),
    "cd-clip": Method("cd-clip"),
    "excel": Method("excel"),
    "resclip": Method("resclip"),
    "ssr": Method("ssr"),
    "ssr, read-out of excel": Method("ssr", cams={"readout": "excel"}),
    "ssr, read-out of resclip": Method("ssr", cams={"readout": "resclip", "dense_scale": 40.0}),
    "ssr, 6 blocks": Method("ssr", refine={"clip_blocks": 6}),
    "ssr, dense alone": Method("ssr", cams={"readout": "dense", "dense_scale": 60.0}),
    "ssr-plus": Method("ssr-plus"),
    "ssr, no mask": Method("ssr", refine={"superpixel_mask": "none"}),
    "ssr + CDA": Method("ssr", refine=CDA),
    "ssr, CDA for the mask": Method("ssr", refine=CDA_FOR_MASK),
    "ssr, aligned": Method("ssr", aligned=True),
    "ssr, aligned, 6 blocks": Method("ssr", refine={"clip_blocks": 6}, aligned=True),
    "ssr-plus, aligned": Method("ssr-plus", aligned=True),
    "ssr, aligned + CDA": Method("ssr", refine=CDA, aligned=True),
    "ssr, aligned, CDA for the mask": Method("ssr", refine=CDA_FOR_MASK, aligned=True),
}


RECIPES = {path.stem for path in (Path(__file__).parents[1] / "pipelines/recipes").glob("*.toml")}


class Row:
    """One method during a run: its options, its counts, its seconds.

    Args:
        method: What to run.
        kind: Of the dataset: ``clip-es`` has another box on COCO.
        ckpt: Alignment heads.
        crf: Also score after the CRF.
    """

    def __init__(self, method: Method, kind: str, ckpt: Path | None, crf: bool) -> None:
        coco = f"{method.recipe}-coco"
        recipe = read_recipe(coco if kind == "coco" and coco in RECIPES else method.recipe)
        self.cams = CamsOptions(**{**recipe["cams"], **method.cams, "ckpt": ckpt if method.aligned else None})
        self.refine = RefineOptions(**{**recipe["refine"], **method.refine, "boundary": "none"})
        self.crf = self.refine.model_copy(update={"boundary": "crf"}) if crf else None
        self.counts: dict[tuple[str, str], NDArray[np.int64]] = {}
        self.seconds = 0.0

    @property
    def needs(self) -> Needs:
        """What its parts read."""
        return cam_needs(self.cams) | refine_needs(self.refine)

    def add(self, subset: str, stage: str, counts: NDArray[np.int64]) -> None:
        """Add the counts of one photo."""
        self.counts[subset, stage] = self.counts.get((subset, stage), 0) + counts


def main() -> None:
    """Run every method and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="dataset, clip and dino sections")
    parser.add_argument("--split", help="in place of the config's")
    parser.add_argument("--images", action="append", default=[], metavar="NAME=FILE.txt", help="also score these ids")
    parser.add_argument("--only", action="store_true", help="the photos of --images alone")
    parser.add_argument("--methods", nargs="+", choices=METHODS, help="default: all that need no --ckpt")
    parser.add_argument("--ckpt", type=Path, help="alignment heads")
    parser.add_argument("--crf", action="store_true", help="also score after the CRF")
    arguments = parser.parse_args()
    values, _ = read_config(arguments.config)
    if arguments.split:
        values["dataset"]["split"] = arguments.split
    workspace = workspace_of(values, Path("unused"))
    names = arguments.methods or [name for name, method in METHODS.items() if arguments.ckpt or not method.aligned]
    kind = workspace.dataset_options.kind
    rows = {name: Row(METHODS[name], kind, arguments.ckpt, arguments.crf) for name in names}
    subsets = {name: set(read_split(Path(file))) for name, file in (entry.split("=", 1) for entry in arguments.images)}
    samples = [s for s in workspace.samples if not arguments.only or any(s.image_id in ids for ids in subsets.values())]
    bench = Bench(workspace, rows, subsets, arguments.ckpt)
    for sample in samples:
        bench.score(sample)
    bench.print()


class Bench:
    """The encoders, and what has been counted.

    Args:
        workspace: Photos, masks and models.
        rows: The methods.
        subsets: Image ids that are scored on their own too.
        ckpt: Alignment heads.
    """

    def __init__(self, workspace: Workspace, rows: dict[str, Row], subsets: dict[str, set[str]], ckpt: Path | None) -> None:
        self.workspace, self.rows, self.subsets, self.photos = workspace, rows, subsets, 0
        self.needs: Needs = frozenset().union(*(row.needs for row in rows.values()))
        device = resolve_device(workspace.run.device)
        models = FrozenModels(model_sources(workspace, self.needs, ckpt), device, workspace.run.precision)
        deepest = max(row.refine.clip_blocks for row in rows.values())
        blocks = Blocks(clip_each=deepest, dino_attention=max(row.refine.dino_blocks for row in rows.values()))
        aligned = next((row.cams for row in rows.values() if row.cams.ckpt), None)
        self.clip = models.encoders(self.needs - DINO_NEEDS - {"clip_attention"} | {"clip_block_attention"}, blocks)
        self.dino = models.encoders(self.needs - CLIP_NEEDS - {"superpixels"}, blocks) if self.needs & DINO_NEEDS else None
        self.alignment = models.encoders(self.needs, blocks, aligned).alignment if aligned else None
        self.encoding: dict[str, float] = defaultdict(float)

    def encoded(self, sample: Sample, image: Image.Image) -> Evidence:
        """One pass of each encoder, timed."""
        ids = None
        if "superpixels" in self.needs:
            options = SuperpixelsOptions(**read_recipe("ssr")["superpixels"])
            arguments = (np.asarray(image), options.segments, options.compactness, options.iterations)
            ids = self.timed("superpixels", lambda: slic_superpixels(*arguments))

        def passed(encoders: Encoders) -> Evidence:
            return encoders.encode([encoders.photo(sample, image, ids)])

        evidence = self.timed("CLIP", lambda: passed(self.clip))
        if self.dino is not None:
            dino = self.dino
            other = self.timed("DINO", lambda: passed(dino))
            evidence = evidence.replacing(dino_tokens=other.dino_tokens, dino_attention=other.dino_attention)
        return evidence

    def timed(self, name: str, call: Callable[[], Result]) -> Result:
        """Add the CPU seconds of a call to what all photos took."""
        begin = time.process_time()
        result = call()
        self.encoding[name] += time.process_time() - begin
        return result

    @torch.no_grad()
    def score(self, sample: Sample) -> None:
        """Maps and masks of one photo by every method."""
        image = load_image(sample.image_path)
        size = (image.height, image.width)
        mask_path = self.workspace.dataset.mask_path(sample.image_id)
        truth = read_mask(mask_path)
        evidence = self.encoded(sample, image)
        self.photos += 1
        cams: dict[str, tuple[Tensor, float]] = {}
        for row in self.rows.values():
            key = repr(row.cams)
            if key not in cams:
                own = evidence if row.cams.ckpt is None else evidence.replacing(alignment=self.alignment)
                begin = time.process_time()
                cams[key] = initial_cams(own, row.cams).half().float(), time.process_time() - begin
            cam, seconds = cams[key]
            attention = evidence.clip_block_attention[-row.refine.clip_blocks :].mean(dim=0)  # (1, N, N)
            begin = time.process_time()
            refined = refined_cams(evidence.replacing(clip_attention=attention), cam, row.refine)  # (K, N)
            row.seconds += seconds + time.process_time() - begin
            for stage, maps, options in self.stages(row, cam, refined):
                array = maps.view(-1, *evidence.grid).cpu().numpy().astype(np.float16)  # (K, h, w)
                mask, _ = pseudo_mask(array, sample.labels, size, options, lambda: image)
                counts = confusion_counts(mask, truth, len(self.workspace.dataset.classes.label_map_names))
                for subset in ("all", *(name for name, ids in self.subsets.items() if sample.image_id in ids)):
                    row.add(subset, stage, counts)

    @staticmethod
    def stages(row: Row, cam: Tensor, refined: Tensor) -> Iterator[tuple[str, Tensor, RefineOptions]]:
        """Maps that are scored, and how masks are made of them."""
        yield "CAM", cam, row.refine
        yield "refined", refined, row.refine
        if row.crf is not None:
            yield "+ CRF", refined, row.crf

    def print(self) -> None:
        """The table of each subset."""
        whole = [] if len(self.subsets) == 1 and self.photos == len(*self.subsets.values()) else ["all"]
        for subset in (*whole, *self.subsets):
            print(f"\n**{subset}**\n\n| method | {' | '.join(STAGES)} | P / R / FP:TP | CPU s: encoders + own |")
            print("|---|---|---|---|---|---|")
            for name, row in self.rows.items():
                found = {s: self.metrics(row, subset, s) for s in STAGES if (subset, s) in row.counts}
                if not found:
                    continue
                last = found["refined"]
                quality = f"{100 * (last.precision or 0):.1f} / {100 * last.recall:.1f} / {last.confusion_ratio or 0:.3f}"
                cells = [scores(found[stage]) if stage in found else "" for stage in STAGES]
                print(f"| {name} | {' | '.join(cells)} | {quality} | {self.cost(row)} |")
        seven = f"after the slash, where classes are VOC's, mean IoU of {', '.join(SEVEN)}"
        print(f"\nmIoU in %; {seven}. {self.photos} photos, one pass of the encoders.")

    def metrics(self, row: Row, subset: str, stage: str) -> Metrics:
        """Metrics of one cell."""
        return metrics_from_counts(row.counts[subset, stage], self.workspace.dataset.classes.label_map_names)

    def cost(self, row: Row) -> str:
        """CPU seconds a photo."""
        in_use = {
            "CLIP": bool(row.needs & CLIP_NEEDS),
            "DINO": bool(row.needs & DINO_NEEDS),
            "superpixels": "superpixels" in row.needs,
        }
        encoders = sum(seconds for name, seconds in self.encoding.items() if in_use[name])
        return f"{encoders / self.photos:.2f} + {row.seconds / self.photos:.3f}"


def scores(metrics: Metrics) -> str:
    """mIoU, and the seven classes' where there are such."""
    values = [metrics.per_class_iou.get(name) for name in SEVEN]
    known = [value for value in values if value is not None]
    seven = f" / {100 * sum(known) / len(known):.2f}" if known and len(metrics.per_class_iou) == 21 else ""
    return f"{100 * metrics.miou:.2f}{seven}"


if __name__ == "__main__":
    main()
