"""Bad images among good ones: where a run stops, what may fail, and what is made good later."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

BAD = ("text", "empty", "missing")


@pytest.fixture(scope="module")
def zoo(tmp_path_factory, make_voc: Callable[..., None]) -> Path:
    root = tmp_path_factory.mktemp("zoo") / "VOC2012"
    make_voc(root, dict.fromkeys(("plain", "grey", "cmyk", *BAD), ((40, 32), ("cat",))), masks=False)
    (root / "JPEGImages/text.jpg").write_text("this is no photo")
    (root / "JPEGImages/empty.jpg").write_bytes(b"")
    (root / "JPEGImages/missing.jpg").unlink()
    for name, mode in (("grey", "L"), ("cmyk", "CMYK")):
        Image.open(root / f"JPEGImages/{name}.jpg").convert(mode).save(root / f"JPEGImages/{name}.jpg")
    return root


def failures(work: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (work / "failures.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("stage", ["superpixels", "cams"])
def test_without_tolerance_it_stops_and_keeps_what_is_done(zoo, tiny_voc, ssr, tmp_path, stage):
    from pipelines.stores.array_store import ArrayReader

    listed = tmp_path / "ids.txt"
    listed.write_text("\n".join(("plain", "grey", "text", "cmyk")))
    made = ("--config", tiny_voc.config, "--root", zoo, "--work", tmp_path / "w", "--split", listed, "--recipe", "clip-es")
    ran = ssr(stage, *made, code=1)
    assert "stopped at bad image 1" in ran.err
    assert "text" in ran.err
    assert "--max-failures" in ran.err
    with ArrayReader(tmp_path / f"w/{stage}.h5") as reader:
        assert {"plain", "grey"} <= set(reader.ids())
    assert json.loads((tmp_path / f"w/{stage}.json").read_text())["complete"] is False
    assert [entry["image"] for entry in failures(tmp_path / "w")] == ["text"]


@pytest.mark.parametrize(("allowed", "code"), [(0, 1), (1, 1), (2, 3), (3, 3)])
def test_max_failures_is_the_number_that_may_fail(zoo, tiny_voc, ssr, tmp_path, allowed, code):
    listed = tmp_path / "ids.txt"
    listed.write_text("\n".join(("plain", "text", "empty")))
    made = ("--config", tiny_voc.config, "--root", zoo, "--work", tmp_path / "w", "--split", listed, "--recipe", "clip-es")
    ssr("cams", *made, "--max-failures", allowed, code=code)


def test_mended_image_is_picked_up(zoo, tiny_voc, ssr, tmp_path):
    root = Path(shutil.copytree(zoo, tmp_path / "VOC2012"))
    listed = tmp_path / "ids.txt"
    listed.write_text("plain\ntext\n")
    made = ("--config", tiny_voc.config, "--root", root, "--work", tmp_path / "w", "--split", listed, "--recipe", "clip-es")
    for stage in ("cams", "refine"):
        ssr(stage, *made, "--max-failures", 1, code=3)
    shutil.copy(root / "JPEGImages/plain.jpg", root / "JPEGImages/text.jpg")
    for stage in ("cams", "refine"):
        assert ", 1 already done" in ssr(stage, *made).err
    assert (tmp_path / "w/failures.jsonl").read_text() == ""
    assert (tmp_path / "w/masks/text.png").read_bytes() == (tmp_path / "w/masks/plain.png").read_bytes()


def test_show_and_doctor_name_the_bad_ones(zoo, tiny_voc, ssr, tmp_path):
    made = ("--config", tiny_voc.config, "--root", zoo, "--work", tmp_path / "w")
    for stage in ("superpixels", "cams", "refine"):
        ssr(stage, *made, "--max-failures", -1, code=3)
    out = ssr("doctor", *made, code=1).out
    assert all(name in out for name in BAD)
    ran = ssr("show", *made, "--max-failures", -1, code=3)
    assert all(f"{name}: " in ran.err for name in BAD)
    assert "3 panels" in ran.out
