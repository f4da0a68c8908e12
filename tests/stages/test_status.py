"""What `status` makes of stores and manifests."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipelines.stages.status import WorkStatus, status
from pipelines.stores.array_store import ArrayWriter
from pipelines.stores.files import file_sha256
from pipelines.stores.manifest import Manifest


def make(work: Path, held: int, total: int, counts: dict[str, int], complete: bool = True) -> Path:
    """A store of CAMs with ``held`` images, and the manifest of the last run."""
    with ArrayWriter(work / "cams.h5") as writer:
        for number in range(held):
            writer.add(f"i{number}", np.zeros((1, 2, 2), np.float16), {})
    Manifest("cams", {}, {"images": total}, counts, complete).write(work / "cams.json")
    return work


@pytest.mark.parametrize(
    ("held", "total", "counts", "complete", "images", "others", "state"),
    [
        (6, 6, {"done": 6, "skipped": 0, "failed": 0}, True, 6, 0, "done"),
        (6, 2, {"done": 0, "skipped": 2, "failed": 0}, True, 2, 4, "done, 4 of another split"),
        (6, 2, {}, False, 2, 4, "broken off, 4 of another split"),
        (6, 9, {"done": 2, "skipped": 1, "failed": 6}, True, 3, 0, "done, 6 bad"),  # 3 of the 6 are of another work list
        (5, 6, {"done": 5, "skipped": 0, "failed": 1}, True, 5, 0, "done, 1 bad"),
        (3, 6, {"done": 6, "skipped": 0, "failed": 0}, True, 3, 0, "done"),  # taken away since
        (2, 6, {}, False, 2, 0, "broken off"),
        (0, 0, {"done": 0, "skipped": 0, "failed": 0}, True, 0, 0, "done"),
    ],
)
def test_images_of_the_present_work_list(tmp_path, held, total, counts, complete, images, others, state):
    output = status(make(tmp_path, held, total, counts, complete)).outputs[1]
    assert (output.name, output.images, output.total, output.others, output.state) == ("cams", images, total, others, state)


def test_an_output_that_was_never_begun(tmp_path):
    found = status(tmp_path)
    assert {output.state for output in found.outputs} == {"not begun"}
    assert found.next_command == f"ssr superpixels --work {tmp_path}"


# heads: a row only for those who train them


def heads(work: Path, complete: bool = True, failed: int = 0, checkpoint: bool = True) -> Path:
    """What `ssr align` leaves of six photos, one of them without a class."""
    counts = {"iterations": 7, "photos": 5 - failed} if complete else {}
    Manifest("align", {}, {"images": 6}, counts, complete).write(work / "cmpa.json")
    Manifest("align", {}, {"images": 6}, {"done": 5, "skipped": 1, "failed": failed}, True).write(work / "align/tokens.json")
    if checkpoint:
        (work / "cmpa.safetensors").touch()
    return work


def names(found: WorkStatus) -> list[str]:
    return [output.name for output in found.outputs]


def test_heads_are_a_row_only_where_they_were_begun(tmp_path):
    assert names(status(tmp_path)) == ["superpixels", "cams", "refined", "masks"]
    (tmp_path / "align").mkdir()
    assert names(status(tmp_path)) == ["superpixels", "cams", "refined", "masks"]
    assert names(status(heads(tmp_path))) == ["superpixels", "cmpa", "cams", "refined", "masks"]


@pytest.mark.parametrize(
    ("made", "images", "total", "state"),
    [
        ({}, 5, 5, "done"),
        ({"failed": 2}, 3, 5, "done, 2 bad"),
        ({"complete": False, "checkpoint": False}, 0, 6, "broken off"),
        ({"complete": False}, 0, 6, "broken off"),  # trained anew over an older checkpoint
        ({"checkpoint": False}, 5, 6, "broken off"),  # taken away since
    ],
)
def test_photos_that_heads_have_learned_from(tmp_path, made, images, total, state):
    output = status(heads(tmp_path, **made)).outputs[1]
    assert (output.images, output.total, output.others, output.state) == (images, total, 0, state)
    assert output.options_digest
    assert output.updated


def superpixels(work: Path) -> Path:
    Manifest("superpixels", {}, {"images": 6}, {"done": 6}, True).write(work / "superpixels.json")
    return work


def test_next_after_the_heads_are_cams_through_them(tmp_path):
    work = heads(superpixels(tmp_path))
    through = f"ssr cams --ckpt auto --work {work}"
    assert status(work).next_command == through
    these = {"sha256": file_sha256(work / "cmpa.safetensors")}
    Manifest("cams", {"ckpt": these}, {"images": 6}, {}, False).write(work / "cams.json")
    assert status(work).next_command == through
    Manifest("cams", {"ckpt": {"sha256": "of other heads"}}, {"images": 6}, {}, False).write(work / "cams.json")
    assert status(work).next_command == f"ssr cams --ckpt auto --force --work {work}"
    Manifest("cams", {"ckpt": None}, {"images": 6}, {}, False).write(work / "cams.json")
    assert status(work).next_command == f"ssr cams --work {work}"
    cams = Manifest("cams", {"ckpt": these}, {"images": 6}, {"done": 6}, True)
    cams.write(work / "cams.json")
    assert status(work).next_command == f"ssr refine --work {work}"
    Manifest("refine", {"cams": cams.options_digest}, {"images": 6}, {"done": 3}, False).write(work / "refined.json")
    assert status(work).next_command == f"ssr refine --work {work}"
    Manifest("refine", {"cams": "others"}, {"images": 6}, {"done": 6}, True).write(work / "refined.json")
    found = status(work)
    assert found.next_command == f"ssr refine --force --work {work}"
    assert next(output for output in found.outputs if output.name == "refined").state == "done, of older cams"


def test_next_after_a_training_that_was_broken_off_is_to_go_on(tmp_path):
    work = heads(superpixels(tmp_path), complete=False, checkpoint=False)
    assert status(work).next_command == f"ssr align --work {work}"


@pytest.mark.parametrize(
    ("files", "scored", "looked_at", "few"),
    [
        ([], "ssr eval", "ssr show", "ssr show"),
        (["ablation.json"], "ssr eval ablation", "ssr show", "ssr show"),
        (["show/index.html"], "ssr eval", "ssr train --ckpt auto", "ssr review"),
        (["ablation.json", "report.html"], "ssr eval ablation", "ssr train --ckpt auto", "ssr review"),
        (["report.html"], "ssr ablation", "ssr train --ckpt auto", "ssr review"),
        (["review/review.csv"], "ssr eval", "ssr show", "ssr show"),
        (["predictions/val.json"], "ssr show", "ssr show", "ssr show"),
    ],
)
def test_next_after_the_masks(tmp_path, files, scored, looked_at, few):
    work = heads(superpixels(tmp_path))
    for name in files:
        (work / name).parent.mkdir(exist_ok=True)
        (work / name).touch() if not name.endswith("json") else Manifest("predict", {}, {}, {}, True).write(work / name)
    for kind, images, following in (("voc", 6, scored), ("folder", 60, looked_at), ("folder", 6, few)):
        for name in ("cams", "refined", "masks"):
            Manifest(name, {"ckpt": "abc"}, {"images": images}, {"done": images}, True).write(work / f"{name}.json")
        (work / "work.json").write_text(json.dumps({"dataset": {"kind": kind, "root": str(tmp_path)}}))
        assert status(work).next_command == f"{following} --work {work}"
