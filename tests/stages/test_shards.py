"""Shards of the stages: together they are the whole to the byte, one that is missing costs its share alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pipelines.stores.array_store import ArrayReader
from pipelines.stores.manifest import read_manifest
from pipelines.stores.shard import Shard

STAGES = ("superpixels", "cams", "refine")
COUNT = 3


@pytest.fixture(scope="module")
def run(ssr, tiny_voc):
    def call(stage, work, *flags, code=0, shards=None):
        ran = None
        for index in range(COUNT) if shards is None else shards:
            ran = ssr(stage, "--config", tiny_voc.config, "--work", work, "--shard", f"{index}/{COUNT}", *flags, code=code)
        return ran

    return call


@pytest.fixture(scope="module")
def shared(run, tmp_path_factory):
    """A work directory whose stages were all run in shards; not merged. Copy before changing."""
    work = tmp_path_factory.mktemp("shards") / "work"
    for stage in STAGES:
        run(stage, work)
    return work


def contents(work: Path) -> dict[str, bytes]:
    """Every file but locks; manifests without the time."""
    found = {}
    for path in sorted(work.rglob("*")):
        if path.is_file() and not path.name.endswith(".lock"):
            content = path.read_bytes()
            if path.suffix == ".json" and b'"updated"' in content:
                content = json.dumps({**json.loads(content), "updated": "", "created": ""}).encode()
            found[str(path.relative_to(work))] = content
    return found


def test_merged_they_are_the_whole_to_the_byte(shared, finished, ssr, tmp_path):
    work = Path(shutil.copytree(shared, tmp_path / "work"))
    ran = ssr("merge", "--work", work)
    assert "cams.h5: 6 images of 3 shards" in ran.out
    assert f"next: ssr eval --work {work}" in ran.out
    merged, whole = contents(work), contents(finished["ssr"])
    assert merged.keys() == whole.keys()
    assert [name for name in whole if merged[name] != whole[name]] == []
    assert "nothing to merge" in ssr("merge", "--work", work).out


def test_they_are_read_together_without_a_merge(shared, finished, ssr, tmp_path):
    work = Path(shutil.copytree(shared, tmp_path / "work"))
    assert "done" in ssr("status", "--work", work).out
    assert "broken off" not in ssr("status", "--work", work).out
    for what in ("cams", "refined", "masks"):
        ssr("eval", what, "--work", work, "--no-pictures")
        ssr("eval", what, "--work", Path(shutil.copytree(finished["ssr"], tmp_path / what)), "--no-pictures")
        for name in ("report.json", "confusion.npy", "per_class.csv"):
            assert (work / f"eval/{what}" / name).read_bytes() == (tmp_path / what / f"eval/{what}" / name).read_bytes()


@pytest.mark.parametrize("flags", [("masks",), ("cams", "--oracle"), ("refined", "--background-power", 2)], ids=lambda f: f[0])
def test_scores_of_shards_add_up_exactly(shared, run, ssr, tmp_path, flags):
    one, three = (Path(shutil.copytree(shared, tmp_path / name)) for name in ("one", "three"))
    ssr("eval", *flags, "--work", one)
    run("eval", three, *flags, shards=[2, 0])
    assert f"next: ssr merge --work {three}" in run("eval", three, *flags, shards=[0]).out
    assert not (three / "eval").exists()
    ran = ssr("merge", "--work", three, code=3)
    assert f"eval/{flags[0]}: not merged without 1/3" in ran.err
    run("eval", three, *flags, shards=[1])
    assert "mIoU" in ssr("merge", "--work", three).out
    made, expected = contents(three / "eval"), contents(one / "eval")
    assert made == expected
    assert len(expected) == 10 if "--oracle" in flags else 5


def test_predictions_and_probabilities(ssr, run, tiny_voc, write_model, tmp_path):
    model, works = write_model(tmp_path / "m.safetensors"), [tmp_path / "one", tmp_path / "three"]
    flags = ("--model", model, "--probabilities")
    ssr("predict", "--config", tiny_voc.config, "--work", works[0], *flags)
    run("predict", works[1], *flags)
    ssr("merge", "--work", works[1])
    one, three = (contents(work / "predictions") for work in works)
    assert three == one
    assert len(one) == 8


def test_any_folder_of_photos(ssr, run, tiny_voc, write_model, tmp_path):
    model, photos = write_model(tmp_path / "m.safetensors"), tiny_voc.root / "JPEGImages"
    flags = ("--model", model, "--images", photos)
    run("predict", tmp_path / "work", *flags, "--output", tmp_path / "made/here")
    ssr("predict", "--config", tiny_voc.config, "--work", tmp_path / "work", *flags, "--output", tmp_path / "whole/here")
    ssr("merge", tmp_path / "made/here", "--work", tmp_path / "work")
    assert contents(tmp_path / "made") == contents(tmp_path / "whole")


def test_a_dead_worker_costs_its_share(run, finished, ssr, tmp_path):
    work = tmp_path / "work"
    for stage in STAGES:
        run(stage, work, shards=[0, 2])
    assert "broken off" in ssr("status", "--work", work).out
    ran = ssr("merge", "--work", work, code=3)
    assert "cams.h5: 2 shards merged; not complete without 1/3" in ran.err
    for stage in STAGES:  # any number of shards goes on from there, none too
        ran = ssr(stage, "--work", work)
        left = sum(Shard(1, 3).holds(one) for one in ("a_cat", "b_trio", "c_bird", "d_empty", "e_pair", "f_car"))
        assert f", {6 - left} already done" in ran.err
    assert contents(work) | counts_of(work) == contents(finished["ssr"]) | counts_of(work)


def test_a_share_that_runs_again_over_the_whole_keeps_its_counts(run, finished, ssr, tmp_path):
    work = Path(shutil.copytree(finished["ssr"], tmp_path / "work"))
    counts = read_manifest(work / "masks").counts
    run("refine", work, shards=[0])
    assert read_manifest(work / "masks").counts == counts
    ssr("merge", "--work", work)
    assert read_manifest(work / "masks").counts == counts
    assert contents(work) | counts_of(work) == contents(finished["ssr"]) | counts_of(work)


def counts_of(work: Path) -> dict[str, bytes]:
    """Manifests differ in what the last run did."""
    return {name: b"" for name in contents(work) if name.endswith(".json")}


def test_a_stage_takes_over_without_a_merge(run, shared, finished, ssr, tmp_path):
    """An unsharded run makes what is missing, and one output of all."""
    work = tmp_path / "work"
    run("superpixels", work, shards=[1])
    ssr("superpixels", "--work", work)
    assert not (work / "shards").exists()
    assert (work / "superpixels.h5").read_bytes() == (finished["ssr"] / "superpixels.h5").read_bytes()
    work = Path(shutil.copytree(shared, tmp_path / "all"))
    assert ", 6 already done" in ssr("refine", "--work", work).err
    assert (work / "refined.h5").read_bytes() == (finished["ssr"] / "refined.h5").read_bytes()
    assert [path.name for path in (work / "shards").rglob("refined*")] == []


def test_the_next_stage_of_a_share_needs_that_share_alone(run, tmp_path):
    work = tmp_path / "work"
    for stage in STAGES:
        run(stage, work, shards=[1])
    with ArrayReader(work / "refined.h5") as reader:
        assert reader.ids()
        assert all(Shard(1, COUNT).holds(one) for one in reader.ids())


def test_another_number_is_refused(shared, ssr, tiny_voc, tmp_path):
    work = Path(shutil.copytree(shared, tmp_path / "work"))
    ran = ssr("cams", "--work", work, "--shard", "0/2", code=2)
    assert "has shards of 3, not of 2" in ran.err
    assert f"ssr merge --work {work}" in ran.err
    ssr("merge", "--work", work)
    ssr("cams", "--work", work, "--shard", "0/2")


@pytest.mark.parametrize("change", [("--dense-weight", 0.5), ("--recipe", "clip-es")])
def test_other_options_are_refused(shared, ssr, run, tmp_path, change):
    work = Path(shutil.copytree(shared, tmp_path / "work"))
    before = contents(work)
    ran = run("cams", work, *change, code=2, shards=[1])
    assert "made with other options" in ran.err
    assert contents(work) == before
    ran = ssr("cams", "--work", work, *change, code=2)
    assert "made with other options" in ran.err
    assert contents(work) == before


def test_force_starts_a_share_over(shared, ssr, run, tiny_voc, tmp_path):
    work, whole = Path(shutil.copytree(shared, tmp_path / "work")), tmp_path / "whole"
    change = ("--dense-weight", 0.5)
    run("cams", work, *change, "--force", shards=[1])
    for command in (("status",), ("refine", "--shard", "1/3"), ("merge",)):  # half old, half new: nothing reads that
        assert "made with other options" in ssr(*command, "--work", work, code=2).err
    run("cams", work, *change, "--force", shards=[0, 2])
    ssr("merge", "--work", work)
    ssr("superpixels", "--config", tiny_voc.config, "--work", whole)
    ssr("cams", "--config", tiny_voc.config, "--work", whole, *change)
    assert (work / "cams.h5").read_bytes() == (whole / "cams.h5").read_bytes()


def test_force_does_not_touch_what_is_not_of_a_shard(finished, ssr, run, tmp_path):
    work = Path(shutil.copytree(finished["ssr"], tmp_path / "work"))
    before = contents(work)
    ran = run("cams", work, "--dense-weight", 0.5, "--force", code=2, shards=[0])
    assert "is not of one shard alone" in ran.err
    assert "remove it and cams.json" in ran.err
    assert contents(work) == before
    assert "already done" not in run("cams", work, "--force", shards=[0]).err  # the same options: its share again
    ssr("merge", "--work", work)
    assert (work / "cams.h5").read_bytes() == before["cams.h5"]


def test_failures_are_gathered(ssr, tiny_voc, tmp_path):
    root = Path(shutil.copytree(tiny_voc.root, tmp_path / "voc"))
    bad = ["a_cat", "c_bird", "f_car"]
    for one in bad:
        (root / f"JPEGImages/{one}.jpg").write_bytes(b"no image")
    flags = ("--config", tiny_voc.config, "--root", root, "--max-failures", -1)
    for index in range(COUNT):
        mine = [one for one in bad if Shard(index, COUNT).holds(one)]
        ran = ssr("superpixels", *flags, "--work", tmp_path / "w", "--shard", f"{index}/{COUNT}", code=3 if mine else 0)
        assert (f"shards/{index}-of-{COUNT}/failures.jsonl" in ran.err) == bool(mine)
    ssr("merge", "--work", tmp_path / "w")
    ssr("superpixels", *flags, "--work", tmp_path / "one", code=3)
    logs = [(tmp_path / name / "failures.jsonl").read_text().splitlines() for name in ("w", "one")]
    assert sorted(logs[0]) == sorted(logs[1])
    assert len(logs[0]) == 3


def test_a_damaged_shard_is_named(shared, ssr, tmp_path):
    work = Path(shutil.copytree(shared, tmp_path / "work"))
    victim = next(path for path in (work / "shards").rglob("cams.h5"))
    victim.write_bytes(victim.read_bytes()[:700])
    for command in (("merge",), ("eval", "cams", "--no-pictures")):
        ran = ssr(*command, "--work", work, code=1)
        assert str(victim) in ran.err
        assert "remove it and run its stage again" in ran.err
    victim.unlink()
    shard = victim.parent.name.replace("-of-", "/")
    ssr("cams", "--work", work, "--shard", shard)
    ssr("merge", "--work", work)
