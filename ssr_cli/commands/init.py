"""``ssr init``."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from pipelines.errors import UsageError
from ssr_cli.console import err, next_step, out
from ssr_cli.invocation import Invocation
from ssr_cli.parameters import command_with

if TYPE_CHECKING:
    from pipelines.stages.init import Plan


@command_with("dataset", "clip", "dino", "run")
def command(
    invocation: Invocation,
    names: Annotated[str, typer.Option(help="Class names, separated by commas, where there is no class list.")] = "",
    output: Annotated[Path, typer.Option(help="Config to write; --force replaces one that is there.")] = Path("ssr.toml"),
) -> None:
    """Write a config for a folder of photos: find layout, split, labels and class list, and name the next command.

    On a terminal, asks for what no flag says. Elsewhere --root is needed and, if the folder has no labels, --labels or --names.
    """
    from pipelines.stages import init

    if invocation.config is not None:
        raise UsageError("--config: this command reads no config, it writes one", "--output FILE.toml")
    init.refuse_existing(output, invocation.force)
    values = {section: dict(entries) for section, entries in invocation.flags.items() if entries}
    given = init.located(_with_root(values.get("dataset", {})))
    lacking = init.lacking(given)
    if lacking is not None and not names:
        if not asks():
            raise lacking
        given, names = _asked(given)
    words = tuple(name.strip() for name in names.split(",") if name.strip())
    made = init.plan(values | {"dataset": given}, words)
    written = init.write(made, output, invocation.work_flag, invocation.recipe_flag, invocation.force)
    _print(made, written)
    quoted = shlex.quote(str(output))
    next_step(f"ssr doctor --config {quoted}" if made.labelled else f"ssr predict --model tags --config {quoted}")


def asks() -> bool:
    """Whether somebody is there to answer."""
    return sys.stdin.isatty()


def _with_root(given: dict[str, Any]) -> dict[str, Any]:
    if "root" in given:
        return given
    if not asks():
        raise UsageError("expected a folder of photos, found no --root; without a terminal nothing is asked", "--root FOLDER")
    return given | {"root": typer.prompt("Folder of photos", value_proc=_folder)}


def _asked(given: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The options of the dataset and the class names, with answers for what is not known."""
    file = typer.prompt("Label file (empty: there is none)", default="", show_default=False, value_proc=_file_or_none)
    if file is not None:
        return given | {"labels": file}, ""
    return given, typer.prompt("Class names, separated by commas", value_proc=_names)


def _folder(answer: str) -> Path:
    path = Path(answer.strip()).expanduser()
    if not path.is_dir():
        raise typer.BadParameter(f"expected a folder, found {answer!r:.80}")
    return path


def _file_or_none(answer: str) -> Path | None:
    if not answer.strip():
        return None
    path = Path(answer.strip()).expanduser()
    if not path.is_file():
        raise typer.BadParameter(f"expected a file, found {answer!r:.80}")
    return path


def _names(answer: str) -> str:
    if not answer.replace(",", "").strip():
        raise typer.BadParameter("expected at least one name, such as: mug, spoon")
    return answer


def _print(made: Plan, written: tuple[Path, ...]) -> None:
    from pipelines.datasets.names import some

    dataset, classes = made.dataset, made.dataset.classes
    for words in (*dataset.understood, *dataset.passed_over, *classes.notes):
        err.print(f"[dim]{escape(words)}[/]")
    out.print(
        f"layout {escape(dataset.kind)}, split {escape(dataset.split)}: {len(dataset.samples):,} photos "
        f"{'with' if made.labelled else 'without'} labels, {len(classes.names)} classes: "
        f"{escape(some(classes.names))}"
    )
    for path in written:
        out.print(f"written: [bold]{escape(str(path))}[/]")
