"""Label maps that come back from other tools: our own exports, and what these tools write themselves."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.corrections import Source, corrections
from pipelines.corrections.coco import run_length_mask
from pipelines.datasets.classes import palette
from pipelines.errors import ImageError, SsrError, TooManyFailures, UsageError
from pipelines.options.export import ImportOptions
from pipelines.stages import corrections as stage
from tests.fixtures.odd import NAMES

FILES = {
    "cvat": "masks.zip",
    "cvat-xml": "annotations.xml",
    "coco": "annotations/instances_train.json",
    "label-studio": "tasks.json",
}


def submitted(path: Path) -> Path:
    """Label Studio's tasks after a person has submitted each: predictions become annotations."""
    tasks = json.loads(path.read_text(encoding="utf-8"))
    for task in tasks:
        (prediction,) = task.pop("predictions")
        task["annotations"] = [
            {"result": [], "updated_at": "2026-01-01T00:00:00Z", "was_cancelled": False},
            {"result": prediction["result"], "updated_at": "2026-01-02T00:00:00Z", "was_cancelled": False},
            {"result": [], "updated_at": "2026-01-03T00:00:00Z", "was_cancelled": True},
        ]
    path = path.with_name("export.json")
    path.write_text(json.dumps(tasks), encoding="utf-8")
    return path


@pytest.mark.parametrize(("form", "options"), [
    *((form, {"ignore": "class"}) for form in FILES),
    *((form, {"ignore": "class", "instances": True}) for form in FILES),
    ("coco", {"ignore": "class", "polygons": True}),
])  # fmt: skip
def test_what_is_exported_comes_back(odd, exported, tmp_path, form, options):
    """Pixel for pixel, unsure pixels included."""
    if options.get("polygons"):
        pytest.importorskip("rasterio")
    file = exported(form, **options) / FILES[form]
    if form == "label-studio":
        file = submitted(file)
    workspace = replace(odd.workspace, work=tmp_path / "work")
    done = stage.run(workspace, file, ImportOptions(empty="background"))
    assert (done.done, done.failed, done.total) == (len(odd.maps), 0, len(odd.maps))
    for image_id, mask in odd.maps.items():
        with Image.open(done.folder / f"{image_id}.png") as picture:
            np.testing.assert_array_equal(np.asarray(picture), mask, err_msg=image_id)


def test_images_without_objects_are_passed_over(odd, exported, tmp_path):
    workspace = replace(odd.workspace, work=tmp_path / "work")
    done = stage.run(workspace, exported("cvat") / "masks.zip", ImportOptions())
    assert (done.done, done.total) == (5, 5)
    assert not (done.folder / "nothing.png").exists()
    assert "1 images without an object" in done.said[0]


def test_force_removes_earlier_corrections_once_the_file_has_given_one(odd, exported, tmp_path):
    workspace = replace(odd.workspace, work=tmp_path / "work", force=True)
    good = exported("cvat") / "masks.zip"
    kept = stage.run(workspace, good, ImportOptions()).total
    (tmp_path / "tasks.json").write_text('[{"id": 1, "data": {"image": "/x/ring.jpg"}, "predictions": []}]')
    empty = cvat_zip(tmp_path / "x.zip", {"elsewhere": Image.new("L", (2, 2))}, "background:0,0,0::\n")
    for file in (tmp_path / "tasks.json", empty):
        with pytest.raises(SsrError):
            stage.run(workspace, file, ImportOptions())
        assert len(list(workspace.corrected.glob("*.png"))) == kept
    one = next(iter(odd.maps))
    with zipfile.ZipFile(good) as whole, zipfile.ZipFile(tmp_path / "one.zip", "w") as part:
        for name in whole.namelist():
            if name.endswith((f"SegmentationClass/{one}.png", "labelmap.txt")):
                part.writestr(name, whole.read(name))
    assert stage.run(workspace, tmp_path / "one.zip", ImportOptions(empty="background")).total == 1


def read(odd, file: Path) -> dict:
    return dict(corrections(Source(file, odd.workspace.dataset.classes)))


def cvat_zip(path: Path, pictures: dict[str, Image.Image], labels: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("labelmap.txt", labels)
        for name, picture in pictures.items():
            out = io.BytesIO()
            picture.save(out, "PNG")
            archive.writestr(f"SegmentationClass/{name}.png", out.getvalue())
    return path


def test_colours_and_indices_of_cvat(odd, tmp_path):
    """CVAT writes colours; labels stand in its order, not in ours; an undeclared colour is one bad image."""
    labels = "background:0,0,0::\nfire hydrant:9,8,7::\n_ignore:1,1,1::\nStraßenschild:200,0,0::\n"
    index = np.array([[0, 1], [2, 3]], np.uint8)
    rgb = np.array([[0, 0, 0], [9, 8, 7], [1, 1, 1], [200, 0, 0]], np.uint8)[index]
    strange = rgb.copy()
    strange[0, 0] = 5
    grey = Image.fromarray(index)
    other = grey.copy()
    other.putpalette(palette().tobytes())  # indices under a palette of other colours
    pictures = {"ring": Image.fromarray(rgb), "whole": grey, "sub/many": other, "nothing": Image.fromarray(strange)}
    found = read(odd, cvat_zip(tmp_path / "x.zip", pictures, labels))
    for image_id in ("ring", "whole", "many"):
        np.testing.assert_array_equal(found[image_id].label_map, [[0, 3], [255, 1]])
    assert "expected colours of labelmap.txt, found [5, 5, 5]" in str(found["nothing"])


def test_shapes_of_cvat_lie_over_one_another(odd, tmp_path):
    """By z_order, then in order; a polygon is filled as COCO's code does; a box is no mask."""
    text = """<?xml version="1.0"?><annotations><version>1.1</version><meta/>
    <image id="0" name="a/ring.jpg" width="6" height="4">
    <mask label="fire hydrant" source="manual" rle="0, 4" left="1" top="1" width="2" height="2" z_order="1"/>
    <polygon label="Straßenschild" points="0.0,0.0;4.0,0.0;4.0,3.0;0.0,3.0" z_order="0"/>
    <box label="Straßenschild" xtl="0" ytl="0" xbr="3" ybr="3"/><tag label="x"/></image></annotations>"""
    (tmp_path / "x.xml").write_text(text, encoding="utf-8")
    source = Source(tmp_path / "x.xml", odd.workspace.dataset.classes)
    (found,) = dict(corrections(source)).values()
    wanted = np.zeros((4, 6), np.uint8)
    wanted[:3, :4] = 1
    wanted[1:3, 1:3] = 3
    np.testing.assert_array_equal(found.label_map, wanted)
    assert source.passed_over == {"box": 1}


@pytest.mark.parametrize("shape", [(1, 1), (7, 3), (64, 91)])
@pytest.mark.parametrize("fill", [0.0, 0.01, 0.5, 1.0])
def test_run_lengths_of_coco(shape, fill):
    """Packed ones as pycocotools packs them, and plain ones."""
    coco = pytest.importorskip("pycocotools.mask")
    mask = np.random.default_rng(3).random(shape) < fill
    packed = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert (run_length_mask({"size": list(shape), "counts": packed["counts"].decode()}, shape) == mask).all()
    flat, plain, last = mask.T.ravel().tolist(), [0], False
    for pixel in flat:
        if pixel != last:
            plain.append(0)
            last = pixel
        plain[-1] += 1
    assert (run_length_mask({"size": list(shape), "counts": plain}, shape) == mask).all()
    with pytest.raises(ImageError):
        run_length_mask({"size": list(shape), "counts": [*plain, 1]}, shape)


def test_polygons_of_label_studio_are_percent(odd, tmp_path):
    value = {"points": [[0, 0], [50, 0], [50, 100], [0, 100]], "polygonlabels": ["class 5"]}
    results = [
        {"type": "polygonlabels", "original_width": 8, "original_height": 4, "value": value},
        {"type": "choices", "value": {"choices": ["good"]}},
    ]
    task = {
        "data": {"image": "/data/local-files/?d=photos/na%C3%AFve%20%E5%9B%B3.v2.png"},
        "annotations": [{"result": results}],
    }
    (tmp_path / "x.json").write_text(json.dumps([task]))
    found = read(odd, tmp_path / "x.json")["naïve 図.v2"]
    np.testing.assert_array_equal(found.label_map, np.repeat([[5] * 4 + [0] * 4], 4, axis=0))


def test_ids_of_label_studio_are_taken_as_they_are_and_a_second_entry_is_named(odd, tmp_path):
    """An id that `ssr export` wrote may look like a file name or an address; only addresses are shortened."""
    value = {"points": [[0, 0], [50, 0], [50, 100]], "polygonlabels": ["class 5"]}
    results = [{"type": "polygonlabels", "original_width": 8, "original_height": 4, "value": value}]
    ids = ("photo.jpg", "a%20b", "photo")
    tasks = [{"data": {"image": "/x/y.jpg", "image_id": one}, "annotations": [{"result": results}]} for one in ids]
    (tmp_path / "x.json").write_text(json.dumps(tasks))
    assert tuple(read(odd, tmp_path / "x.json")) == ids
    one = next(iter(odd.maps))
    empty = Image.fromarray(np.zeros_like(odd.maps[one]))
    file = cvat_zip(tmp_path / "x.zip", {one: empty, f"sub/{one}": empty}, "background:0,0,0::\n")
    workspace = replace(odd.workspace, work=tmp_path / "work")
    with pytest.raises(TooManyFailures, match="second label map"):
        stage.run(workspace, file, ImportOptions(empty="background"))


def test_later_files_replace_and_add(odd, exported, tmp_path, ssr):
    """Images of others, another size, other classes; through the command line, which says what comes next."""
    folder = exported("coco")
    content = json.loads((folder / FILES["coco"]).read_text(encoding="utf-8"))
    content["images"][0]["file_name"] = "of another set.png"
    content["images"][1] |= {"width": 3}
    (tmp_path / "x.json").write_text(json.dumps(content), encoding="utf-8")
    words = [
        "import",
        tmp_path / "x.json",
        "folder",
        "--root",
        odd.root,
        "--classes",
        odd.root / "classes.toml",
        "--work",
        tmp_path / "w",
    ]
    said = ssr(*words, "--max-failures", 1, code=3)
    assert "3 corrected masks, now 3" in said.out
    assert f"next: ssr retrain --work {tmp_path / 'w'}" in said.out
    assert "1 images are not of split train, such as 'of another set'" in said.err.replace("\n", " ")
    again = ssr("import", folder / FILES["coco"], *words[2:], "--empty", "background")
    assert "6 corrected masks, now 6" in again.out
    one = np.full(odd.maps["whole"].shape, 2, np.uint8)
    cvat_zip(
        tmp_path / "one.zip",
        {"whole": Image.fromarray(one)},
        "background:0,0,0\nA:1,1,1\nclass 7:2,2,2\n".replace("A:", "class 6:"),
    )
    ssr("import", tmp_path / "one.zip", *words[2:])
    assert (np.asarray(Image.open(tmp_path / "w/corrected/whole.png")) == 7).all()
    assert len(list((tmp_path / "w/corrected").glob("*.png"))) == 6
    names = NAMES[:5]
    (tmp_path / "few.toml").write_text("".join(f"[[classes]]\nname = {name!r}\n" for name in names), encoding="utf-8")
    words[6] = tmp_path / "few.toml"
    assert "has corrections of other classes" in ssr("import", *words[1:], code=2).err


@pytest.mark.parametrize(("content", "message"), [
    (b"", "broken JSON"),
    (b"PK\x03\x04", "broken zip"),
    (b"{}", "expected 'images'"),
    (b"[]", "holds no corrected image"),
    (b"3", "expected CVAT's masks"),
    (b"<svg/>", "expected CVAT's <annotations>, found <svg>"),
])  # fmt: skip
def test_other_files_are_one_line(odd, tmp_path, content, message):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises((SsrError, UsageError), match=message):
        stage.run(replace(odd.workspace, work=tmp_path / "w"), tmp_path / "x", ImportOptions())
    assert not list((tmp_path / "w").glob("corrected/*.png"))
