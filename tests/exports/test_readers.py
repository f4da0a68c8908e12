"""Exports read by libraries that need an environment of their own, because they pin other versions than ours.

python -m venv readers && readers/bin/pip install datumaro label-studio-sdk supervision
SSR_READERS=readers/bin/python python -m pytest tests/exports/test_readers.py
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.exports.test_round_trips import near_edges
from tests.fixtures.odd import NAMES

PYTHON = os.environ.get("SSR_READERS")


@pytest.mark.skipif(not PYTHON, reason="SSR_READERS names no Python that has the readers")
@pytest.mark.parametrize(("form", "options"), [
    ("cvat", {}), ("cvat", {"instances": True}), ("coco", {"photos": "copy"}), ("label-studio", {}), ("yolo-seg", {}),
])  # fmt: skip
def test_by_libraries_of_others(odd, exported, tmp_path, form, options):
    script = Path(__file__).with_name("readers.py")
    command = [str(PYTHON), str(script), form, str(exported(form, **options)), str(tmp_path / "maps.npz")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    read = np.load(tmp_path / "maps.npz")
    assert tuple(name for name in read["names"] if name != "background") == NAMES
    found = {str(image_id): read[str(number)] for number, image_id in enumerate(read["ids"])}
    assert set(found) == set(odd.maps)
    for image_id, mask in odd.maps.items():
        wanted = np.where(mask == 255, 0, mask)
        label_map = found[image_id] if found[image_id].size else np.zeros_like(mask)  # some say no size without an object
        wrong = label_map != wanted
        assert not (wrong & ~near_edges(wanted) if form == "yolo-seg" else wrong).any(), image_id
