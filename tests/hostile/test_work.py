"""A work directory from elsewhere: its memory, manifests, failures, reports and states may hold anything."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from pipelines.evaluation.report import read_report
from pipelines.stores.checkpoint import read_checkpoint, write_checkpoint
from pipelines.stores.manifest import Manifest
from pipelines.training.optimiser_state import restore_optimiser

DEEP = "[" * 100_000
DAMAGE: dict[str, bytes] = {
    "empty": b"",
    "cut": b'{"stage": "cams", "settings": {"a',
    "null": b"null",
    "list": b"[]",
    "number": b"3",
    "text": b'"x"',
    "null bytes": bytes(100),
    "no utf-8": b'{"a": "\xff\xfe"}',
    "deep": DEEP.encode(),
    "deep objects": b'{"a":' * 100_000,
    "number of 5,000 digits": b'{"a": ' + b"9" * 5_000 + b"}",
}
MANIFEST = {"stage": "cams", "settings": {}, "dataset": {}, "counts": {}, "complete": True}
BENT: dict[str, bytes] = {
    name: json.dumps(MANIFEST | change).encode()
    for name, change in {
        "settings null": {"settings": None},
        "settings a list": {"settings": [1]},
        "settings text": {"settings": "x"},
        "dataset null": {"dataset": None},
        "dataset a list": {"dataset": [1]},
        "counts a list": {"counts": [1]},
        "counts of text": {"counts": {"done": "x"}},
        "counts null": {"counts": {"done": None}},
        "counts infinite": {"counts": {"done": float("inf")}},
        "complete text": {"complete": "yes"},
        "images text": {"dataset": {"images": "x"}},
        "images infinite": {"dataset": {"images": float("inf")}},
        "updated a number": {"updated": 3},
    }.items()
}
MEMORY: dict[str, bytes] = {
    name: json.dumps(content).encode()
    for name, content in {
        "config a list": {"config": [1]},
        "section a list": {"config": {"cams": [1]}},
        "section text": {"config": {"cams": "x"}},
        "unknown section": {"config": {"camz": {"a": 1}}},
        "unknown key": {"config": {"cams": {"scale": 1}}},
        "dataset a list": {"dataset": [1]},
        "root a number": {"dataset": {"kind": "voc", "root": 3}},
        "unknown kind": {"dataset": {"kind": "cityscapes", "root": "/x"}},
        "null character": {"dataset": {"kind": "voc", "root": "a\0b"}},
        "split that leaves": {"dataset": {"kind": "voc", "root": "/x", "split": "../../etc/passwd"}},
        "recipe a list": {"recipe": [1]},
        "recipe an object": {"recipe": {"a": 1}},
        "recipe that leaves": {"recipe": "../../etc/passwd"},
        "clip a number": {"clip": 3},
        "config a number": {"config": 3},
    }.items()
}


@pytest.fixture
def work(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished["ssr"], tmp_path / "work"))


def outcome(ssr, *words: object) -> str:
    ran = ssr(*words, code=None)
    assert ran.code in {0, 1, 2, 3}, ran.text
    assert "Traceback" not in ran.text
    assert "unexpected" not in ran.text, ran.err[-500:]
    if ran.code in {1, 2}:
        assert len([line for line in ran.err.splitlines() if line.startswith("error: ")]) == 1, ran.err
    return ran.err


@pytest.mark.parametrize("name", DAMAGE | BENT)
def test_manifests_at_a_glance(ssr, work, name):
    (work / "cams.json").write_bytes((DAMAGE | BENT)[name])
    outcome(ssr, "status", "--work", work)


@pytest.mark.parametrize("name", ["cut", "null", "settings null", "settings a list", "settings text", "counts a list"])
def test_manifests_of_a_stage_that_goes_on(ssr, work, name):
    (work / "cams.json").write_bytes((DAMAGE | BENT)[name])
    outcome(ssr, "cams", "--work", work)


@pytest.mark.parametrize("name", ["null", "settings null", "settings text"])
def test_manifests_of_what_is_scored(ssr, work, name):
    (work / "masks.json").write_bytes((DAMAGE | BENT)[name])
    outcome(ssr, "eval", "--work", work, "--no-pictures")


@pytest.mark.parametrize("name", DAMAGE | MEMORY)
def test_memory_at_a_glance(ssr, work, name):
    (work / "work.json").write_bytes((DAMAGE | MEMORY)[name])
    outcome(ssr, "status", "--work", work)


@pytest.mark.parametrize("name", ["cut", *MEMORY])
def test_memory_of_a_stage(ssr, work, name):
    (work / "work.json").write_bytes((DAMAGE | MEMORY)[name])
    outcome(ssr, "cams", "--work", work)


@pytest.mark.parametrize("name", ["null", "cut", "no utf-8", "deep"])
def test_failures(ssr, work, name):
    (work / "failures.jsonl").write_bytes(DAMAGE[name])
    outcome(ssr, "superpixels", "--work", work)


@pytest.mark.parametrize("name", DAMAGE)
def test_reports(ssr, work, name):
    (work / "eval/masks").mkdir(parents=True)
    (work / "eval/masks/report.json").write_bytes(DAMAGE[name])
    outcome(ssr, "status", "--work", work)


ABLATIONS = {
    "cut": b"[{",
    "null": b"null",
    "text": b'"x"',
    "rows of text": b'["x"]',
    "an object": b"{}",
    "a name that is a number": b'[{"name": 1}]',
    "a row without a title": b'[{"name": "clip"}]',
    "a row of a null character": b'[{"name": "a\\u0000b", "title": "x"}]',
}


@pytest.mark.parametrize("name", ABLATIONS)
def test_ablations(ssr, work, name):
    (work / "ablation.json").write_bytes(ABLATIONS[name])
    assert "ablation.json" in outcome(ssr, "eval", "ablation", "--work", work, "--no-pictures")


def test_a_row_stays_in_the_work_directory(ssr, work, finished, tmp_path):
    shutil.copytree(finished["ssr"] / "masks", tmp_path / "outside/masks")
    shutil.copy(finished["ssr"] / "masks.json", tmp_path / "outside")
    (work / "ablation.json").write_text('[{"name": "../../outside", "title": "x"}]')
    outcome(ssr, "eval", "ablation", "--work", work, "--no-pictures")
    assert sorted(path.name for path in (tmp_path / "outside").iterdir()) == ["masks", "masks.json"]


@pytest.mark.parametrize(("read", "name"), [
    *((read_report, name) for name in DAMAGE),
    *((Manifest.read, name) for name in DAMAGE),
])  # fmt: skip
def test_readers(tmp_path, one_line, read, name):
    (tmp_path / "r.json").write_bytes(DAMAGE[name])
    assert "r.json" in one_line(read, tmp_path / "r.json")


@pytest.mark.parametrize("name", ["deep", "no utf-8", "cut"])
def test_a_mask_of_such_a_kind_is_one_failure(ssr, work, name):
    (work / "masks/a_cat.png").write_bytes(DAMAGE[name])
    said = ssr("eval", "--work", work, "--no-pictures", "--max-failures", -1, code=3).err
    assert "a_cat: expected a PNG mask" in said


STATES = {
    "moments of no parameter": {"optimiser.99.exp_avg": torch.zeros(3)},
    "moments of no number": {"optimiser.x.exp_avg": torch.zeros(3)},
    "moments of a superscript": {"optimiser.\u00b2.exp_avg": torch.zeros(3)},
    "moments of a long number": {f"optimiser.{'9' * 5_000}.exp_avg": torch.zeros(3)},
    "moments without a name": {"optimiser.": torch.zeros(3)},
    "moments of another shape": {"optimiser.0.exp_avg": torch.zeros(4)},
    "moments that are NaN": {"optimiser.0.exp_avg": torch.full((3,), torch.nan)},
    "moments of whole numbers": {"optimiser.0.exp_avg": torch.zeros(3, dtype=torch.int64)},
}


@pytest.mark.parametrize("name", STATES)
def test_states_of_an_optimiser(one_line, name):
    optimiser = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(3))])
    assert "damaged" in one_line(restore_optimiser, optimiser, STATES[name])


@pytest.mark.parametrize("where", [0.2, 0.5, 0.9])
def test_a_flipped_bit_of_a_checkpoint_is_found(tmp_path, one_line, where):
    path = tmp_path / "c.safetensors"
    write_checkpoint(path, {"w": torch.ones(1000)}, {"iteration": 3})
    assert read_checkpoint(path, "--ckpt")[1] == {"iteration": 3}
    data = bytearray(path.read_bytes())
    data[len(data) - 1 - int(4000 * where)] ^= 1
    path.write_bytes(data)
    assert "damaged" in one_line(read_checkpoint, path, "--ckpt")


@pytest.mark.parametrize("name", [*DAMAGE, "other content"])
def test_states_of_a_retraining(tmp_path, one_line, name):
    pytest.importorskip("mmengine")
    from pipelines.mmsegmentation.checkpoint import read_meta

    path = tmp_path / "state.pth"
    if name in DAMAGE:
        path.write_bytes(DAMAGE[name])
    else:
        torch.save({"meta": {"iter": "x"}, "state_dict": {}}, path)
    assert "state.pth" in one_line(read_meta, path)
