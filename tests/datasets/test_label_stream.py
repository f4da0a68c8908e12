"""A label file that is read anew for each pass is the same list as one that is held."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from pipelines.datasets import label_stream
from pipelines.datasets.base import Dataset, Sample
from pipelines.datasets.classes import VOC12
from pipelines.datasets.label_files import read_label_file
from pipelines.datasets.label_stream import LabelStream
from pipelines.datasets.share import Share
from pipelines.errors import SsrError, UsageError
from pipelines.stores.shard import Shard

DRAW = random.Random(0)
ROWS = {
    "plain": [(f"2007_{n:06d}", DRAW.sample(VOC12.names, n % 4)) for n in range(500)],
    "odd names": [
        ("a b", ["cat"]),
        ('q"uote', ["dog"]),
        ("comma,id", []),
        ("é", ["cat", "dog"]),
        ("x.y", ["person"]),
        ("z", []),
    ],
    "one": [("only", [])],
}


def place(image_id: str) -> Path:
    return Path("photos") / f"{image_id}.jpg"


def written(folder: Path, rows: list[tuple[str, list[str]]], kind: str, ending: str = "\n") -> Path:
    import csv
    import json

    path = folder / f"labels.{kind}"
    with path.open("w", encoding="utf-8", newline="") as file:
        match kind:
            case "csv":
                writer = csv.writer(file, lineterminator=ending)
                writer.writerows([("image", "labels"), *((f"{one}.jpg", ";".join(names)) for one, names in rows)])
            case "jsonl":
                file.writelines(json.dumps({"image": one, "labels": names}) + ending for one, names in rows)
            case "json":
                json.dump(dict(rows), file)
    return path


@pytest.mark.parametrize("kind", ["csv", "jsonl", "json"])
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
@pytest.mark.parametrize("digested", [1, 7, 1 << 14])
def test_the_same_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, rows: list[tuple[str, list[str]]], digested: int
) -> None:
    monkeypatch.setattr(label_stream, "_DIGESTED", digested)
    stream = LabelStream(written(tmp_path, rows, kind), VOC12, place)
    held = tuple(Sample(one, place(one), tuple(sorted(map(VOC12.names.index, names)))) for one, names in rows)
    assert tuple(stream) == tuple(stream) == held
    assert len(stream) == len(held)
    assert (stream[0], stream[-1], tuple(stream[:2])) == (held[0], held[-1], held[:2])
    given = [Dataset("folder", tmp_path, "train", VOC12, samples, None) for samples in (stream, held)]
    assert given[0].digest() == given[1].digest()


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("block", [16, 1 << 20])
def test_blocks_do_not_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, block: int) -> None:
    """Rows without quotes are read by the block, the first quote hands over to the CSV parser: equal to parsing alone."""
    from pipelines.datasets import label_files, label_tables

    monkeypatch.setattr(label_tables, "_BLOCK", block)
    path = written(tmp_path, [*ROWS["plain"][:40], *ROWS["odd names"], *ROWS["plain"][40:60]], "csv", ending)
    found = list(label_files.iter_label_file(path, VOC12))
    swapped = tmp_path / "swapped.csv"  # other columns first: no fast way
    with path.open(encoding="utf-8", newline="") as file:
        import csv

        rows = [(names, image) for image, names in csv.reader(file)]
    with swapped.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    assert found == list(label_files.iter_label_file(swapped, VOC12))
    path.write_text(path.read_text(encoding="utf-8") + "last,unicorn\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"labels\.csv:68: unknown class 'unicorn'"):
        list(label_files.iter_label_file(path, VOC12))


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_an_image_that_stands_twice(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = ROWS["plain"][:9]
    path = written(tmp_path, [*rows, rows[3]], kind)
    line = 4 + (kind == "csv")
    said = rf":{line + 6}: image '2007_000003' occurs twice, first in .*:{line} \(keep one of the two\)$"
    with pytest.raises(UsageError, match=said):
        LabelStream(path, VOC12, place)
    with pytest.raises(UsageError, match=said):
        read_label_file(path, VOC12)
    monkeypatch.setattr(label_stream, "id_hash", lambda image_id: 7)  # all ids share their hash, none occurs twice
    assert len(LabelStream(written(tmp_path, rows, kind), VOC12, place)) == 9


def test_a_file_that_changes_meanwhile(tmp_path: Path) -> None:
    path = written(tmp_path, ROWS["plain"], "csv")
    stream = LabelStream(path, VOC12, place)
    os.utime(path, (1, 1))
    with pytest.raises(SsrError, match=r"labels\.csv was changed while it was in use"):
        list(stream)


@pytest.mark.parametrize("count", [1, 3, 40])
def test_shares(tmp_path: Path, count: int) -> None:
    stream = LabelStream(written(tmp_path, ROWS["plain"], "csv"), VOC12, place)
    held = tuple(stream)
    for shard in (Shard(index, count) for index in range(count)):
        mine = [sample for sample in held if shard.holds(sample.image_id)]
        for samples in (stream, held):
            share = Share(samples, shard)
            assert list(share) == mine
            assert len(share) == len(mine)
            assert all(sample in share for sample in mine[:3])
            assert sum(sample in share for sample in held[:20]) == sum(sample in mine for sample in held[:20])


def test_memory_does_not_grow_with_the_list(tmp_path: Path) -> None:
    """4 bytes a row are kept; a list would take hundreds."""
    import tracemalloc

    sizes = []
    for count in (1000, 21_000):
        path = tmp_path / f"{count}.csv"
        path.write_text("image,labels\n" + "".join(f"{n:09d},cat;dog\n" for n in range(count)))
        tracemalloc.start()
        stream = LabelStream(path, VOC12, lambda _: tmp_path)  # pathlib interns the names of new paths
        assert sum(1 for _ in stream) == count
        sizes.append(tracemalloc.get_traced_memory()[0])
        tracemalloc.stop()
    assert sizes[1] - sizes[0] < 10 * 20_000
