"""`ssr retrain` under torchrun: two processes share the crops, the first one writes, and a stop is gone on from."""

from __future__ import annotations

import json
import os
import shutil
import subprocess

import pytest

pytest.importorskip("mmengine")


def test_two_processes(finished, tiny_voc, warm, tmp_path):
    work = tmp_path / "work"
    shutil.copytree(finished["ssr"] / "masks", work / "masks")
    small = (
        "--model", "segformer", "--backbone", "dino", "--schedule", 4, "--save-every", 2, "--crop", 64, "--channels", 16,
        "--warmup", 2, "--val-split", "val", "--workers", 1, "--config", tiny_voc.config, "--work", work,
    )  # fmt: skip

    def run(batch: int) -> subprocess.CompletedProcess[str]:
        launch = (warm.torchrun, "--standalone", "--nproc-per-node=2", "--no-python", warm.ssr)
        argv = [str(word) for word in (*launch, "retrain", *small, "--batch", batch)]
        return subprocess.run(
            argv, capture_output=True, text=True, timeout=300, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )

    refused = run(batch=2)
    assert refused.returncode != 0
    assert "2 processes cannot share 2 crops" in refused.stderr
    done = run(batch=4)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("next:") == 1
    assert json.loads((work / "retrained.json").read_text())["counts"] == {
        "iterations": 4,
        "done": 4,
        "failed": 0,
        "skipped": 0,
    }
    assert json.loads((work / "retrained.json").read_text())["settings"]["processes"] == 2
    lines = [json.loads(line) for line in (work / "retrain/curves.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [2, 4, 4]
    assert "batch_size=2," in (work / "retrain/config.py").read_text()
