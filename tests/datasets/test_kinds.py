"""The table of dataset kinds."""

from __future__ import annotations

import pytest

from pipelines.config import choices_of
from pipelines.datasets import KINDS, load_dataset
from pipelines.errors import UsageError
from pipelines.options.sources import DatasetOptions


def test_help_and_completion_list_what_ships():
    assert choices_of("dataset", "kind") == tuple(KINDS)


def test_an_unknown_kind_is_refused_with_what_was_meant():
    with pytest.raises(UsageError, match="DATASET: no dataset kind 'cocoo': expected one of voc, coco, folder; did you mean"):
        load_dataset(DatasetOptions(kind="cocoo"))
