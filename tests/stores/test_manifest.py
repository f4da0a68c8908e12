from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import SsrError
from pipelines.stores.manifest import Manifest, differences, digest, git_commit, package_versions

LEAVES = st.none() | st.booleans() | st.integers() | st.text(max_size=5)
TREES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
)


def test_round_trip(tmp_path: Path) -> None:
    manifest = Manifest("cams", {"clip": {"model": "é"}, "k": [1, 2]}, {"kind": "voc"}, {"done": 3}, True)
    manifest.write(tmp_path / "cams.json")
    read = Manifest.read(tmp_path / "cams.json")
    assert read == manifest
    assert read is not None
    assert read.versions["python"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", read.updated)
    assert json.loads((tmp_path / "cams.json").read_text())["options_digest"] == manifest.options_digest


def test_absent_and_from_a_later_version(tmp_path: Path) -> None:
    assert Manifest.read(tmp_path / "cams.json") is None
    (tmp_path / "cams.json").write_text('{"stage": "cams", "settings": {}, "dataset": {}, "later": 1}')
    assert Manifest.read(tmp_path / "cams.json") == Manifest("cams", {}, {})


@pytest.mark.parametrize("content", ["", "{", "[]", "1", "null", '"x"', "{}", '{"stage": "cams", "settings": {}}', "\x00"])
def test_garbage_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "cams.json").write_text(content)
    with pytest.raises(SsrError, match=r"cams\.json is not") as caught:
        Manifest.read(tmp_path / "cams.json")
    assert "--force" in str(caught.value) or "again" in str(caught.value)


def _turned(tree: object) -> object:
    if isinstance(tree, dict):
        return {key: _turned(value) for key, value in reversed(tree.items())}
    return [_turned(value) for value in tree] if isinstance(tree, list) else tree


@given(TREES)
def test_digest_is_independent_of_key_order(tree: object) -> None:
    assert digest(tree) == digest(_turned(tree)) == digest(json.loads(json.dumps(tree)))


def test_digest_sees_values_order_of_lists_and_nesting() -> None:
    trees = [{}, {"a": 1}, {"a": 2}, {"b": 1}, {"a": "1"}, {"a": [1, 2]}, {"a": [2, 1]}, {"a": {"b": 1}}]
    assert len({digest(tree) for tree in trees}) == len(trees)


@given(st.dictionaries(st.text(max_size=3), TREES, max_size=3), st.dictionaries(st.text(max_size=3), TREES, max_size=3))
def test_differences_are_none_exactly_if_equal(old: dict[str, object], new: dict[str, object]) -> None:
    assert not differences(old, _turned(old))
    if all(value is not None for tree in (old, new) for value in tree.values()):
        assert bool(differences(old, new)) == (old != new) or _only_empty(old, new)


def _only_empty(old: object, new: object) -> bool:
    """Both differ only by keys whose value is null: the same settings."""
    return (
        isinstance(old, dict)
        and isinstance(new, dict)
        and all(old.get(k) == new.get(k) or _only_empty(old.get(k), new.get(k)) for k in old.keys() | new.keys())
    )


def test_differences_name_the_leaves() -> None:
    old = {"clip": {"model": "a", "same": 1}, "power": 2, "gone": True, "list": [1]}
    new = {"clip": {"model": "b", "same": 1}, "power": 3, "list": [1, 2], "long": "x" * 100}
    assert differences(old, new) == [
        'clip.model: "a" -> "b"',
        "gone: true -> null",
        "list: [1] -> [1, 2]",
        f'long: null -> "{"x" * 56}...',
        "power: 2 -> 3",
    ]


def test_versions_and_commit() -> None:
    versions = package_versions()
    assert {"python", "torch", "numpy", "h5py"} <= versions.keys()
    commit = git_commit()
    assert commit is None or re.fullmatch(r"[0-9a-f]{40,64}", commit)
