"""The zoo of bad images: one clear line each, nothing put in their place, good ones done in any odd format."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

GOOD = ("cmyk", "deep", "grey", "rotated", "thin", "narrow", "dot", "wrong_name", "plain")
BAD = ("truncated", "empty", "text", "missing", "folder", "bomb")
PLAIN = dict.fromkeys((*BAD[:2], *GOOD, *BAD[2:]), ((40, 32), ("cat",)))


def spoil(folder: Path) -> None:
    """Turn drawn photos into the zoo."""
    rng = np.random.default_rng(0)
    path = {name: folder / f"{name}.jpg" for name in PLAIN}
    path["truncated"].write_bytes(path["truncated"].read_bytes()[:400])
    path["empty"].write_bytes(b"")
    path["text"].write_text("this is no photo\n")
    path["missing"].unlink()
    path["folder"].unlink()
    path["folder"].mkdir()
    Image.new("1", (12000, 12000)).save(path["bomb"], format="PNG")
    Image.open(path["cmyk"]).convert("CMYK").save(path["cmyk"])
    Image.fromarray(rng.integers(0, 65535, (32, 40), dtype=np.uint16)).save(path["deep"], format="PNG")
    Image.open(path["grey"]).convert("L").save(path["grey"])
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(path["rotated"]).save(path["rotated"], exif=exif)
    for name, size in (("thin", (60, 1)), ("narrow", (1, 60)), ("dot", (1, 1))):
        Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)).save(path[name])
    Image.open(path["wrong_name"]).save(path["wrong_name"], format="WEBP")


@pytest.fixture(scope="module")
def zoo(tmp_path_factory, make_voc: Callable[..., None]) -> Path:
    root = tmp_path_factory.mktemp("zoo") / "VOC2012"
    make_voc(root, PLAIN, masks=False)
    spoil(root / "JPEGImages")
    return root


@pytest.fixture(scope="module")
def tolerant(zoo, tiny_voc, ssr, tmp_path_factory):
    """Work directory of a run that goes on past every bad image, and what each stage said."""
    work = tmp_path_factory.mktemp("tolerant") / "work"
    made = ("--config", tiny_voc.config, "--root", zoo, "--work", work, "--max-failures", -1)
    said = {stage: ssr(stage, *made, code=3) for stage in ("superpixels", "cams", "refine")}
    said["crf"] = ssr("refine", *made, "--crf", "--force", code=3)
    return work, said


def failures(work: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (work / "failures.jsonl").read_text().splitlines()]


def test_one_line_for_each_bad_image_and_stage(tolerant):
    work, said = tolerant
    found = sorted((entry["stage"], entry["image"]) for entry in failures(work))
    assert found == sorted((stage, name) for stage in ("superpixels", "cams", "refine") for name in BAD)
    for entry in failures(work):
        assert entry["error"]
        assert "\n" not in entry["error"]
    for stage in ("superpixels", "cams", "refine"):
        assert f"{len(BAD)} bad images left out" in said[stage].err
        assert all(f"{name}: " in said[stage].err for name in BAD)


def test_good_images_are_done_and_nothing_stands_in_for_bad_ones(tolerant, zoo):
    work, _ = tolerant
    assert {path.stem for path in (work / "masks").glob("*.png")} == set(GOOD)
    for name in GOOD:
        with Image.open(work / f"masks/{name}.png") as mask, Image.open(zoo / f"JPEGImages/{name}.jpg") as photo:
            assert mask.size == photo.size


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


def test_mended_image_is_picked_up(zoo, tolerant, tiny_voc, ssr, tmp_path):
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


def test_show_and_doctor_name_the_bad_ones(tolerant, zoo, tiny_voc, ssr):
    work, _ = tolerant
    made = ("--config", tiny_voc.config, "--root", zoo, "--work", work)
    out = ssr("doctor", *made, code=1).out
    assert all(name in out for name in BAD if name != "truncated")  # doctor reads headers only
    ran = ssr("show", *made, "--max-failures", -1, code=3)
    assert all(f"{name}: " in ran.err for name in BAD)
    assert f"{len(GOOD)} panels" in ran.out
