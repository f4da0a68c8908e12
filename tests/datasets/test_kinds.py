"""The table of dataset kinds."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.config import choices_of
from pipelines.datasets import KINDS, VOC12, Dataset, Kind, Sample, layout_of, load_dataset
from pipelines.errors import UsageError
from pipelines.options.sources import DatasetOptions
from pipelines.plugins import VARIABLE


def test_help_and_completion_list_what_ships():
    assert choices_of("dataset", "kind") == tuple(KINDS)


def test_an_unknown_kind_is_refused_with_what_was_meant():
    with pytest.raises(UsageError, match="DATASET: no dataset kind 'cocoo': expected one of voc, coco, folder; did you mean"):
        load_dataset(DatasetOptions(kind="cocoo"))


def listed(*samples: object) -> Dataset:
    return Dataset("mine", Path(), "train", VOC12, samples, mask_folder=None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("dataset", "said"),
    [
        (None, "expected a Dataset of one image or more, found None"),
        (listed(), "expected a Dataset of one image or more"),
        (listed(Sample("a", Path("a"), ()), Sample("a", Path("b"), ())), "two images have the id 'a'"),
        (listed(Sample("../a", Path("a"), ())), r"image id '\.\./a' has path separators"),
        (listed(Sample("a", "a.jpg", ())), r"expected a Path of a, found 'a\.jpg'"),
        (listed(Sample("a", Path("a"), (99,))), r"ascending, from 0 to 19, found \(99,\) of a"),
        (listed(Sample("a", Path("a"), (5, 2))), r"found \(5, 2\) of a"),
        (listed(Sample("a", Path("a"), [2])), r"found \[2\] of a"),
    ],
)
def test_what_a_plugin_lists_is_checked(monkeypatch, dataset, said):
    monkeypatch.setitem(KINDS, "mine", Kind(lambda _: dataset))
    with pytest.raises(UsageError, match=f"dataset kind 'mine': .*{said}"):
        load_dataset(DatasetOptions(kind="mine"))


def test_the_layout_of_a_plugin_is_recognised(monkeypatch, tmp_path):
    (tmp_path / "one_layout.py").write_text(
        "from pipelines.datasets import KINDS, Kind\n"
        "KINDS['mine'] = Kind(None, splits=lambda root: ('all',) if (root / 'mine.txt').is_file() else None)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv(VARIABLE, "one_layout")
    try:
        assert layout_of(tmp_path) == "folder"
        (tmp_path / "mine.txt").touch()
        assert layout_of(tmp_path) == "mine"
    finally:
        KINDS.pop("mine", None)
