"""``ssr labels``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pipelines.options.sources import DatasetOptions
from ssr_cli.console import err, out
from ssr_cli.invocation import Invocation
from ssr_cli.parameters import command_with

if TYPE_CHECKING:
    from pipelines.datasets.classes import ClassList


@command_with()
def command(
    invocation: Invocation,
    source: Annotated[Path, typer.Argument(help="folder of XML or masks, or the file to convert")],
    target: Annotated[Path, typer.Argument(help="label file to write: .csv, .json or .jsonl")],
    kind: Annotated[
        Literal["xml", "coco", "masks", "csv", "npy"],
        typer.Option("--from", help="format of SOURCE; csv = any label file; masks opens ground truth"),
    ],
    class_list: Annotated[
        str, typer.Option("--classes", help="voc12, coco14, or a class list (.toml or .yaml); default: the config's, or voc12")
    ] = "",
    images: Annotated[Path | None, typer.Option(help="only the ids in this .txt (one per line), in its order")] = None,
) -> None:
    """Convert XML, COCO JSON, masks, a label file or a one-hot .npy to a label file."""
    from pipelines.datasets.labels import convert_labels, write_label_file
    from pipelines.datasets.splits import read_split

    classes = _class_list(invocation, class_list)
    if kind == "masks":
        err.print(
            "[yellow]--from masks reads ground-truth masks: the results are then not supervised by image-level labels alone[/]"
        )
    labels = convert_labels(kind, source, classes, read_split(images) if images else None)
    write_label_file(target, labels, classes)
    count = sum(len(indices) for indices in labels.values())
    out.print(f"{target}: {len(labels)} images, {count} labels, {len({i for v in labels.values() for i in v})} classes")


def _class_list(invocation: Invocation, name: str) -> ClassList:
    from pipelines.datasets import COCO14, VOC12, kind_of, load_class_list

    if not name and (invocation.config or invocation.work_flag):
        dataset = invocation.options("dataset", DatasetOptions)
        if dataset.classes is None:
            return kind_of(dataset).class_list or VOC12
        name = str(dataset.classes)
    return {"": VOC12, "voc12": VOC12, "coco14": COCO14}.get(name) or load_class_list(Path(name))
