"""``ssr labels``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.markup import escape

from pipelines.options.sources import DatasetOptions
from ssr_cli.console import err, out
from ssr_cli.invocation import Invocation
from ssr_cli.parameters import command_with

if TYPE_CHECKING:
    from pipelines.datasets.classes import ClassList


@command_with()
def command(
    invocation: Invocation,
    source: Annotated[Path, typer.Argument(help="folder of XML, photos, YOLO files or masks, or the file to convert")],
    target: Annotated[Path, typer.Argument(help="label file to write: .csv, .json or .jsonl")],
    kind: Annotated[
        Literal["xml", "coco", "masks", "csv", "npy", "folders", "yolo"],
        typer.Option(
            "--from",
            help="format of SOURCE; csv = any label file; folders = photos in one folder a class; masks opens ground truth",
        ),
    ],
    class_list: Annotated[
        str,
        typer.Option(
            "--classes",
            help="voc12, coco14, or a class list file; default: the config's; of folders and yolo their own; else voc12",
        ),
    ] = "",
    images: Annotated[Path | None, typer.Option(help="only the ids in this .txt (one per line), in its order")] = None,
    absent_is_empty: Annotated[
        bool, typer.Option("--absent-is-empty", help="ids of --images that SOURCE lacks have no class")
    ] = False,
    write_classes: Annotated[
        Path | None, typer.Option(help="also write a class list (.toml) with the class names of SOURCE")
    ] = None,
) -> None:
    """Convert XML, COCO JSON, YOLO, folders of photos, masks, a label file or a one-hot .npy to a label file."""
    from pipelines.datasets.classes import write_class_list
    from pipelines.datasets.labels import BRINGS_CLASSES, convert_labels, write_label_file
    from pipelines.datasets.splits import read_split

    own = not class_list and (write_classes is not None or kind in BRINGS_CLASSES)
    classes = None if own else _class_list(invocation, class_list)
    if kind == "masks":
        err.print(
            "[yellow]--from masks reads ground-truth masks: the results are then not supervised by image-level labels alone[/]"
        )
    found = convert_labels(kind, source, classes, read_split(images) if images else None, absent_is_empty)
    for words in found.understood:
        err.print(f"[dim]{escape(words)}[/]")
    if write_classes is not None:
        write_class_list(write_classes, found.classes)
        out.print(f"{escape(str(write_classes))}: {len(found.classes.names)} classes")
    write_label_file(target, found.labels, found.classes)
    labels = found.labels.values()
    count, used = sum(map(len, labels)), len({index for indices in labels for index in indices})
    out.print(f"{escape(str(target))}: {len(labels)} images, {count} labels, {used} classes")


def _class_list(invocation: Invocation, name: str) -> ClassList:
    from pipelines.datasets import COCO14, VOC12, kind_of, load_class_list

    if not name and (invocation.config or invocation.work_flag):
        dataset = invocation.options("dataset", DatasetOptions)
        if dataset.classes is None:
            return kind_of(dataset).class_list or VOC12
        name = str(dataset.classes)
    return {"": VOC12, "voc12": VOC12, "coco14": COCO14}.get(name) or load_class_list(Path(name))
