"""The table of dataset kinds, and a kind from outside the package."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pipelines.config import choices_of
from pipelines.datasets import KINDS, load_dataset
from pipelines.errors import UsageError
from pipelines.options.sources import DatasetOptions

TOY = """\
from pipelines.datasets import KINDS, Dataset, Kind, Sample
from pipelines.datasets.classes import ClassList

COLOURS = ClassList(names=("red", "blue"), prompts=("red", "blue"), background=("sky",), template="a photo of {}.")


def load(options):
    photos = sorted(options.root.glob("*.png"))
    samples = [Sample(path.stem, path, (COLOURS.index(path.stem.split("_")[0]),)) for path in photos]
    return Dataset("toykind", options.root, options.split, COLOURS, samples, mask_folder=None)


KINDS["toykind"] = Kind(load, COLOURS)
"""


def test_help_and_completion_list_what_ships():
    assert choices_of("dataset", "kind") == tuple(KINDS)


def test_an_unknown_kind_is_refused_with_what_was_meant():
    with pytest.raises(UsageError, match="DATASET: no dataset kind 'cocoo': expected one of voc, coco, folder; did you mean"):
        load_dataset(DatasetOptions(kind="cocoo"))


def test_a_kind_in_one_file(photo, tmp_path, ssr_process):
    (tmp_path / "toy_kind.py").write_text(TOY)
    for name in ("red_1", "blue_1"):
        photo(tmp_path / f"photos/{name}.png", (24, 16))
    path = f"{Path(__file__).parents[2]}:{tmp_path}"
    environment = {**os.environ, "SSR_PLUGINS": "toy_kind", "PYTHONPATH": path}
    words = ("superpixels", "toykind", "--root", tmp_path / "photos", "--workers", 2, "--work", tmp_path / "work")
    ssr_process(*words, env=environment)
    made = json.loads((tmp_path / "work/superpixels.json").read_text())
    assert (made["dataset"]["kind"], made["counts"]["done"]) == ("toykind", 2)
    again = ssr_process("show", "toykind", "--work", tmp_path / "work", env=environment)
    assert "2 panels" in again.out
