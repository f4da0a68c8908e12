"""What `status` makes of stores and manifests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipelines.stages.status import status
from pipelines.stores.array_store import ArrayWriter
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
