"""`ssr merge`: merges the outputs of shards into one, with the same bytes as those of a single process."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.errors import SsrError
from pipelines.evaluation.counted import Counted, add_counted, read_counted
from pipelines.execution.failures import failure_lines, write_failure_lines
from pipelines.stores.array_store import ArrayWriter
from pipelines.stores.files import remove_leftovers
from pipelines.stores.manifest import read_manifest, shard_manifests
from pipelines.stores.shard import Shard, shard_folders
from pipelines.workdir.workspace import FAILURES, REPORTS

if TYPE_CHECKING:
    from pipelines.stages.evaluate import Evaluation


@dataclass(frozen=True)
class Merged:
    """One merged output.

    Attributes:
        output: The store or folder; for scores, the report.
        shards: Number of shards that took part.
        missing: Shards that have not begun or not finished.
        images: Number of images that they processed, skipped or scored.
        evaluations: Reports, if scores were added up.
    """

    output: Path
    shards: int
    missing: tuple[Shard, ...]
    images: int
    evaluations: tuple[Evaluation, ...] = ()


def run(work: Path, folders: Sequence[Path] = ()) -> list[Merged]:
    """Merge every output of a work directory.

    Args:
        work: The work directory.
        folders: Further folders that shards have written to, such as ``--output`` of `ssr predict`.

    Raises:
        SsrError: A shard is still being written or is damaged.
        UsageError: Shards were made with different options.
    """
    places = [
        work,
        *sorted((work / "ablation").glob("*")),
        work / "predictions",
        work / "retrained",
        *(f.parent for f in folders),
    ]
    merged = [output for place in dict.fromkeys(places) for output in merge_outputs(_outputs(place))]
    merge_failures(work)
    return merged + merge_scores(work)


def merge_outputs(outputs: Iterable[Path]) -> list[Merged]:
    """Merge the shards of some stores and folders of PNGs; outputs without shards are not changed."""
    merged: list[Merged] = []
    with ExitStack() as stack:
        for output in outputs:
            manifest, shards = read_manifest(output), shard_manifests(output)
            stack.callback(_tidy, output.parent)
            with ArrayWriter(output.with_name("refined.h5") if output.name == "masks" else output.with_suffix(".h5")):
                remove_leftovers(output)  # closing the writer merges
                remove_leftovers(output.parent, output.with_suffix(".json").name)
            if manifest is None or not shards:  # an earlier merge was killed
                continue
            manifest.write(output.with_suffix(".json"))
            for shard in shards:
                shard.place(output.with_suffix(".json")).unlink()
            images = manifest.counts.get("done", 0) + manifest.counts.get("skipped", 0)
            ended = {shard for shard, each in shards.items() if each.complete}
            missing = () if manifest.complete else _missing(ended, shards)
            merged.append(Merged(output, len(shards), missing, images))
    return merged


def merge_failures(work: Path) -> None:
    """Merge the failure logs of all shards into the one of the work directory, ordered by stage and image."""
    logs = [folder / FAILURES for _, folder in shard_folders(work) if (folder / FAILURES).is_file()]
    if not logs:
        return
    entries = [entry for log in logs for entry in failure_lines(log)]
    stages = {stage for stage, _ in entries}
    others = [line for stage, line in failure_lines(work / FAILURES) if stage not in stages]
    write_failure_lines(work / FAILURES, others + sorted(line for _, line in entries))
    for log in logs:
        log.unlink()
    _tidy(work)


def merge_scores(work: Path) -> list[Merged]:
    """Add up the counts of shards and write the reports.

    Args:
        work: The work directory.

    Raises:
        SsrError: Nothing could be scored, or the shards are not of one evaluation.
    """
    from pipelines.stages import evaluate  # here, because it imports matplotlib (0.5 s)

    merged: list[Merged] = []
    counts_by_name: dict[str, dict[Shard, Path]] = {}
    for shard, folder in shard_folders(work):
        for path in sorted((folder / REPORTS).glob("*.json")):
            counts_by_name.setdefault(path.stem, {})[shard] = path
    for name, paths in sorted(counts_by_name.items()):
        complete = [shard.count for shard in paths if not _missing(set(paths), [shard])]
        count = complete[0] if complete else next(iter(paths)).count  # other counts are left by an interrupted run
        counted_shards = [shard for shard in paths if shard.count == count]
        missing = _missing(set(paths), counted_shards)
        report = work / REPORTS / name
        if missing:  # a report would look like the score of the whole list
            merged.append(Merged(report, len(counted_shards), missing, 0))
            continue
        counted: Counted = add_counted([read_counted(paths[shard]) for shard in counted_shards])
        if counted.images == 0:
            raise SsrError(f"none of {counted.failed} images could be scored", f"see {work / FAILURES}")
        evaluations = tuple(evaluate.finish(work, counted))
        for path in paths.values():
            path.unlink()
        merged.append(Merged(report, len(counted_shards), (), counted.images, evaluations))
    _tidy(work)
    return merged


def _outputs(place: Path) -> list[Path]:
    """Return the outputs that shards have written to: stores, and folders of PNGs by their manifests."""
    names = {path.name for _, folder in shard_folders(place) for path in folder.iterdir() if not path.name.startswith(".")}
    stores = {name.removesuffix(".parts") for name in names if name.endswith((".h5", ".h5.parts"))}
    stems = {Path(name).stem for name in stores}
    folders = {name.removesuffix(".json") for name in names if name.endswith(".json")} - stems
    return [place / name for name in sorted(stores | folders)]


def _missing(ended: set[Shard], shards: Iterable[Shard]) -> tuple[Shard, ...]:
    count = next(iter(shards)).count
    return tuple(shard for index in range(count) if (shard := Shard(index, count)) not in ended)


def _tidy(place: Path) -> None:
    """Remove the empty folders of shards."""
    for _, folder in list(shard_folders(place)):
        for empty in (folder / REPORTS, folder, folder.parent):
            with suppress(OSError):
                empty.rmdir()
