"""``ssr labels``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.markup import escape

from pipelines.errors import UsageError
from pipelines.options.sources import DatasetOptions
from pipelines.options.stages import CamsOptions, SuperpixelsOptions
from ssr_cli.console import EXIT_PARTLY, ConsoleProgress, err, out
from ssr_cli.invocation import Invocation
from ssr_cli.parameters import command_with

if TYPE_CHECKING:
    from pipelines.datasets.classes import ClassList


@command_with()
def command(
    invocation: Invocation,
    source: Annotated[
        Path | None,
        typer.Argument(metavar="SOURCE", help="Folder of XML, photos, YOLO files or masks, or the file to convert."),
    ] = None,
    target: Annotated[
        Path | None, typer.Argument(metavar="TARGET", help="Label file to write (.csv, .json or .jsonl).")
    ] = None,
    kind: Annotated[
        Literal["xml", "coco", "masks", "csv", "npy", "folders", "yolo"] | None,
        typer.Option(
            "--from",
            help="Format of SOURCE: csv is any label file, folders are photos in one folder for each class, masks "
            "opens ground truth.",
        ),
    ] = None,
    class_list: Annotated[
        str,
        typer.Option(
            "--classes",
            help="Class list: voc12, coco14, or a file; without it, the config's, that of folders or YOLO files "
            "themselves, or voc12.",
        ),
    ] = "",
    images: Annotated[Path | None, typer.Option(help="Only the ids in this .txt (one on each line), in its order.")] = None,
    absent_is_empty: Annotated[
        bool, typer.Option("--absent-is-empty", help="Ids of --images that SOURCE lacks have no class.")
    ] = False,
    write_classes: Annotated[
        Path | None, typer.Option(help="Also write a class list (.toml) with the class names of SOURCE.")
    ] = None,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="List labels of the dataset of --config or --work that are probably wrong or missing; needs no SOURCE.",
        ),
    ] = False,
    top: Annotated[
        int, typer.Option(min=1, help="Labels on the page with pictures of --check, the most doubtful first.")
    ] = 100,
) -> None:
    """Convert XML, COCO JSON, YOLO, folders of photos, masks, a label file or a one-hot .npy to a label file.

    With --check, list labels that are probably wrong or missing, by the scores of the class names; opens no ground truth.
    """
    if check:
        _check(invocation, top)
        return
    if source is None or target is None or kind is None:
        lacking = "SOURCE" if source is None else "TARGET" if target is None else "--from"
        raise UsageError(f"expected SOURCE, TARGET and --from, found no {lacking}", "ssr labels --help, or --check")
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


def _check(invocation: Invocation, top: int) -> None:
    from pipelines.stages import check_labels

    superpixels, cams = invocation.options("superpixels", SuperpixelsOptions), invocation.options("cams", CamsOptions)
    with ConsoleProgress() as progress:
        made = check_labels.run(invocation.workspace, superpixels, cams, top, progress)
    out.print(f"{made.wrong:,} labels of {made.photos:,} images may be wrong, {made.missing:,} may be missing")
    out.print(f"all, worst first: [bold]{escape(str(made.table))}[/]")
    out.print(f"the first {made.shown:,}, to tick: [bold]{escape(str(made.page))}[/]; it saves a corrected label file")
    if made.failed:
        raise typer.Exit(EXIT_PARTLY)


def _class_list(invocation: Invocation, name: str) -> ClassList:
    from pipelines.datasets import COCO14, VOC12, kind_of, load_class_list

    if not name and (invocation.config or invocation.work_flag):
        dataset = invocation.options("dataset", DatasetOptions)
        if dataset.classes is None:
            return kind_of(dataset).class_list or VOC12
        name = str(dataset.classes)
    return {"": VOC12, "voc12": VOC12, "coco14": COCO14}.get(name) or load_class_list(Path(name))
