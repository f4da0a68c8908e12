"""Thresholds of tags as a file, which `ssr tag` writes and later taggings read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import SsrError, UsageError
from pipelines.method.tagging import tagger_name, tagger_of
from pipelines.options.stages import CamsOptions
from pipelines.options.tag import TagOptions
from pipelines.stores.files import read_json, write_json

FLAG = "--tag-thresholds"


def write_thresholds(path: Path, tagger: str, classes: Mapping[str, float], **more: Any) -> None:
    """Write the thresholds of a tagger by class name, with further facts on them."""
    write_json(path, {"tagger": tagger, "classes": dict(classes), **more})


def given_thresholds(names: Sequence[str], cams: CamsOptions, tags: TagOptions) -> NDArray[np.float64]:
    """Return thresholds that need no calibration: a number, those of a file, or the tagger's default.

    Args:
        names: Class names.
        cams: Options that name alignment heads, if any.
        tags: The tagger and its thresholds.

    Returns:
        ``(C,)``.

    Raises:
        UsageError: There is no such file, or it is for another tagger or class list.
    """
    if tags.tag_threshold is not None:
        return np.full(len(names), tags.tag_threshold)
    if tags.tag_thresholds is not None:
        return _read(tags.tag_thresholds, tagger_name(tags, cams), names)
    return np.full(len(names), tagger_of(tags, cams).default_threshold(len(names)))


def _read(path: Path, tagger: str, names: Sequence[str]) -> NDArray[np.float64]:
    try:
        content = read_json(path)
    except SsrError as error:
        raise UsageError(error.message, FLAG) from None
    if not isinstance(content, dict) or not isinstance(content.get("classes"), dict) or "tagger" not in content:
        expected = 'the thresholds.json of `ssr tag`, {"tagger": ..., "classes": {NAME: THRESHOLD}}'
        raise UsageError(f"{path}: expected {expected}, found {json.dumps(content):.60}", FLAG)
    found, of = content["classes"], content["tagger"]
    try:
        values = np.array([found[name] for name in names], dtype=np.float64)
    except KeyError as error:
        raise UsageError(f"{path}: expected thresholds for {len(names)} classes, found none for {error}", FLAG) from None
    except (TypeError, ValueError) as error:
        raise UsageError(f"{path}: expected numbers as thresholds: {error}", FLAG) from None
    if of != tagger:
        raise UsageError(
            f"{path}: expected thresholds of tagger {tagger}, found those of {of!r:.40}", "--tagger, or another file"
        )
    return values
