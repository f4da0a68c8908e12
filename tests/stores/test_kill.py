"""A writer killed at any moment: a real process and a real SIGKILL."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from pipelines.stores.array_store import ArrayReader, ArrayWriter, store_exists

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

# Each line on stdin starts one writer, forked so that the imports are paid once. It writes in rounds, with a merge after each.
WRITER = """
import os, sys
from pathlib import Path
import numpy as np
from pipelines.stores.array_store import ArrayWriter
for line in sys.stdin:
    start = int(line)
    if (child := os.fork()) == 0:
        for turn in range(start, start + 10_000):
            with ArrayWriter(Path(sys.argv[1]), part_images=3) as writer:
                for k in range(8):
                    writer.add(f"im{(5 * turn + k) % 30:02d}", np.full((20, 30), turn, np.int32), {"turn": turn})
        os._exit(0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def _turns(path: Path) -> dict[str, int]:
    """Every image of the store with the turn that wrote it; fails on anything that is not whole."""
    turns = {}
    if store_exists(path):
        with ArrayReader(path) as reader:
            for image_id in reader.ids():
                array, attributes = reader.read(image_id)
                assert array.shape == (20, 30)
                assert (array == attributes["turn"]).all()
                turns[image_id] = attributes["turn"]
    return turns


def test_killed_at_random_moments(tmp_path: Path) -> None:
    path = tmp_path / "s.h5"
    moments = random.Random(0)
    before: dict[str, int] = {}
    command, pipe = [sys.executable, "-c", WRITER, str(path)], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=Path(__file__).parents[2]) as forker:
        assert forker.stdin
        assert forker.stdout
        run = 0
        while run < 12 or (len(before) < 30 and run < 100):  # on a busy machine a writer may be killed before its first part
            print(run * 10_000, file=forker.stdin, flush=True)
            child = int(forker.stdout.readline())
            time.sleep(moments.uniform(0.01, 0.12) * (1 + run / 12))
            os.kill(child, signal.SIGKILL)
            assert int(forker.stdout.readline()) == -signal.SIGKILL
            after = _turns(path)
            assert before.keys() <= after.keys()
            assert all(after[image_id] >= turn for image_id, turn in before.items())  # nothing older comes back
            before = after
            run += 1
        forker.stdin.close()
    assert len(before) == 30
    with ArrayWriter(path) as writer:
        writer.add("last", np.full((20, 30), -1, np.int32), {"turn": -1})
    assert _turns(path) == {**before, "last": -1}
    assert sorted(p.name for p in tmp_path.iterdir() if not p.name.endswith(".lock")) == ["s.h5"]
