"""An output of a stage: settings compared before anything is written, started over, filled, recorded."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipelines.errors import ImageError, TooManyFailures, UsageError
from pipelines.execution.interruption import Interrupted, ask_to_stop, finishing_on_signals
from pipelines.execution.progress import Silent
from pipelines.stores.array_store import ArrayReader
from pipelines.stores.files import read_json
from pipelines.stores.shard import Shard
from pipelines.workdir.output import Part

ONE = {"a": 1, "b": [1, 2]}


@pytest.fixture
def open_output(workspace_in, tmp_path):
    """Opens ``cams.h5``, with what is made from it if ``then`` names settings."""

    def opened(settings, then=None, *, prepare=None, shard=None, **options):
        workspace = replace(workspace_in(tmp_path, **options), shard=shard)
        parts = [] if then is None else [Part("masks", workspace.masks, then)]
        return workspace.output("cams", workspace.cams, settings, Silent(), then=parts, prepare=prepare)

    return opened


def fill(output, and_then=lambda: None) -> None:
    for sample in output.todo(output.holds_labels):
        output.writer.add(sample.image_id, np.zeros(1), {"labels": list(sample.labels)})
        output.made(sample.image_id)
        and_then()


def made(open_output, settings, **details) -> int:
    with open_output(settings, **details) as output:
        fill(output)
    return output.counts.done


def state(folder) -> dict[str, tuple[bytes, int]]:
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".lock"
    }


def test_equal_settings_go_on_and_a_finished_output_keeps_its_bytes(open_output, tmp_path):
    everything = made(open_output, ONE)
    before = state(tmp_path)
    assert everything > 1
    assert made(open_output, {"b": [1, 2], "a": 1}, prepare=lambda: pytest.fail("a model was loaded")) == 0
    assert state(tmp_path) == before
    assert made(open_output, ONE, force=True) == everything


def test_a_finished_output_with_a_missing_image_is_incomplete_while_it_is_made(open_output, tmp_path):
    made(open_output, ONE)
    with open_output(ONE) as output:
        assert output.finished
        assert read_json(tmp_path / "cams.json")["complete"]
        assert output.todo(lambda sample: sample.image_id != "a_cat")
        assert not read_json(tmp_path / "cams.json")["complete"]
    assert read_json(tmp_path / "cams.json")["complete"]


@pytest.mark.parametrize(("old", "new", "flag"), [("float32", "bfloat16", "fp32"), ("bfloat16", "float32", "bf16")])
def test_a_machine_of_another_precision_is_told_the_flag_that_goes_on(open_output, old, new, flag):
    made(open_output, {"precision": old})
    with pytest.raises(UsageError, match=f"\\(precision: .*--precision {flag} keeps its precision, --force starts it over"):
        open_output({"precision": new}).__enter__()


@pytest.mark.parametrize("change", [{"a": 2}, {"a": 1, "c": 3}, {}])
def test_changed_settings_are_refused_before_a_model_is_loaded(open_output, tmp_path, change):
    made(open_output, {"a": 1})
    before = state(tmp_path)
    with pytest.raises(UsageError, match="other options"):
        open_output(change, prepare=lambda: pytest.fail("a model was loaded")).__enter__()
    assert state(tmp_path) == before
    assert made(open_output, change, force=True) > 0
    assert read_json(tmp_path / "cams.json")["settings"] == change


@pytest.mark.parametrize("flags", [{}, {"force": True}])
def test_what_prepare_raises_costs_nothing(open_output, tmp_path, flags):
    def no_weights() -> None:
        raise UsageError("no weights", "")

    if flags:
        made(open_output, ONE)
    before = state(tmp_path)
    with pytest.raises(UsageError, match="no weights"):
        open_output({"a": 2}, prepare=no_weights, **flags).__enter__()
    assert state(tmp_path) == before


def test_old_output_is_gone_before_new_settings_are_written(open_output, tmp_path, monkeypatch):
    made(open_output, {"a": 1})
    monkeypatch.setattr("pipelines.workdir.record.Record.begin", lambda record: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        open_output({"a": 2}, force=True).__enter__()
    assert not (tmp_path / "cams.h5").exists()
    assert read_json(tmp_path / "cams.json")["settings"] == {"a": 1}


def test_a_store_without_manifest_is_unknown(open_output, tmp_path):
    everything = made(open_output, ONE)
    (tmp_path / "cams.json").unlink()
    with pytest.raises(UsageError, match="has no manifest"):
        open_output(ONE).__enter__()
    assert made(open_output, ONE, force=True) == everything


def test_many_changes_are_counted(open_output):
    made(open_output, dict.fromkeys("abcdef", 1))
    with pytest.raises(UsageError, match="a: 1 -> 2; b: 1 -> 2; c: 1 -> 2; d: 1 -> 2; and 2 more"):
        open_output(dict.fromkeys("abcdef", 2)).__enter__()


def test_what_comes_before_the_first_change_is_kept(open_output, tmp_path):
    """Of a store and the masks made from it: new mask settings leave the store, new store settings leave nothing."""
    masks = tmp_path / "masks"
    everything = made(open_output, ONE, then={"p": 1})
    for then, settings, kept in (({"p": 2}, ONE, True), ({"p": 3}, {"a": 3}, False), ({"p": 3}, {"a": 3}, False)):
        (masks / "a_cat.png").write_bytes(b"")
        with open_output(settings, then=then, force=True) as output:
            assert not (masks / "a_cat.png").exists()
            fill(output)
        assert output.counts.done == (0 if kept else everything)
    before = state(tmp_path)
    with pytest.raises(UsageError, match=r"masks was made with other options \(p: 3 -> 4\)"):
        open_output({"a": 3}, then={"p": 4}).__enter__()
    assert state(tmp_path) == before


def test_a_run_that_is_stopped_is_recorded_as_such_and_goes_on(open_output, tmp_path):
    with finishing_on_signals(lambda _: None), pytest.raises(Interrupted), open_output(ONE) as output:
        fill(output, ask_to_stop)
    manifest = read_json(tmp_path / "cams.json")
    assert (manifest["complete"], manifest["counts"]) == (False, {"done": 1, "skipped": 0, "failed": 0})
    with open_output(ONE) as output:
        assert not output.finished
        fill(output)
    assert output.counts.skipped == 1
    assert read_json(tmp_path / "cams.json")["complete"]


def test_a_run_that_fails_is_not_complete(open_output, tmp_path):
    with pytest.raises(TooManyFailures), open_output(ONE) as output:
        output.made(next(output.todo()).image_id, ImageError("broken"))
    assert not read_json(tmp_path / "cams.json")["complete"]


def test_photos_are_decoded_and_bad_ones_counted(open_output):
    def load(sample):
        if sample.image_id == "a_cat":
            raise ImageError("broken")
        return sample.image_id

    with open_output(ONE, max_failures=1) as output:
        good = list(output.photos(load, output.todo()))
    assert good == sorted(good)
    assert "a_cat" not in good
    assert len(good) > 1
    assert output.counts.failed == 1
    assert "broken" in output.failures.path.read_text()


def test_a_training_records_its_own_numbers(open_output, tmp_path):
    path = tmp_path / "cams.json"
    with open_output(ONE) as output:
        output.record({"iterations": 3})
        assert (read_json(path)["complete"], read_json(path)["counts"]) == (False, {"iterations": 3})
        output.complete({"iterations": 6})
    assert (read_json(path)["complete"], read_json(path)["counts"]) == (True, {"iterations": 6})


def test_shards_have_manifests_of_their_own_and_the_whole_takes_them_over(open_output, tmp_path):
    first = made(open_output, ONE, shard=Shard(0, 2))
    part = tmp_path / "shards/0-of-2"
    before = state(part)
    assert made(open_output, ONE, shard=Shard(0, 2)) == 0
    assert state(part) == before
    with pytest.raises(UsageError, match="other options"):
        open_output({"a": 2}, shard=Shard(1, 2)).__enter__()
    second = made(open_output, ONE, shard=Shard(1, 2))
    assert not read_json(tmp_path / "cams.json")["complete"]
    assert made(open_output, ONE) == 0
    assert read_json(tmp_path / "cams.json")["counts"]["skipped"] == first + second
    assert not (tmp_path / "shards").exists()
    with ArrayReader(tmp_path / "cams.h5") as reader:
        assert len(reader) == first + second
