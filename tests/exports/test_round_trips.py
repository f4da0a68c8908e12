"""What readers that are not ours get back from an export: the label map, pixel for pixel, or as near as is said here."""

from __future__ import annotations

import ast
import json
import shutil
import xml.etree.ElementTree as ET
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from pipelines.errors import SsrError, UsageError
from pipelines.exports import EXPORTS
from pipelines.ops.run_lengths import decode_brush, encode_brush, from_run_lengths, run_lengths
from pipelines.options.export import FORMATS, ExportOptions
from pipelines.stages import export
from tests.fixtures.odd import NAMES


def expected(odd, ignored: int = 0):
    return {image_id: np.where(mask == 255, ignored, mask) for image_id, mask in odd.maps.items()}


def same(found, wanted) -> None:
    assert set(found) == set(wanted)
    for image_id, mask in wanted.items():
        np.testing.assert_array_equal(found[image_id], mask, err_msg=image_id)


def by_pycocotools(file: Path):
    """Label maps, annotation by annotation; also that areas and boxes are those of the pixels."""
    from pycocotools.coco import COCO

    coco = COCO(str(file))
    names = {entry["id"]: entry["name"] for entry in coco.dataset["categories"]}
    found = {}
    for image in coco.dataset["images"]:
        found[image["file_name"].removesuffix(".png")] = label_map = np.zeros((image["height"], image["width"]), np.uint8)
        for entry in coco.loadAnns(coco.getAnnIds(image["id"])):
            mask = coco.annToMask(entry).astype(bool)
            assert not label_map[mask].any()
            rows, columns = np.nonzero(mask)
            box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
            assert (entry["area"], entry["bbox"], entry["iscrowd"]) == (mask.sum(), box, 0)
            label_map[mask] = entry["category_id"]
    return found, names, coco


@pytest.mark.parametrize("polygons", [False, True])
@pytest.mark.parametrize("instances", [False, True])
def test_coco_by_pycocotools(odd, exported, polygons, instances):
    """Polygons lie on the edges of pixels: they are exact, holes and single pixels included."""
    if polygons:
        pytest.importorskip("rasterio")
    folder = exported("coco", polygons=polygons, instances=instances)
    found, names, coco = by_pycocotools(folder / "annotations/instances_train.json")
    same(found, expected(odd))
    assert names == dict(enumerate(NAMES, start=1))
    ids = [entry["id"] for entry in coco.dataset["annotations"]]
    assert len(set(ids)) == len(ids)
    parts = [entry for entry in coco.dataset["annotations"] if entry["image_id"] == odd.order.index("parts and one pixel") + 1]
    assert len(parts) == (3 if instances else 2)  # two of class 3, one of them a corner longer, and one pixel
    assert (folder / "images/ring.png").resolve() == (odd.root / "images/ring.png").resolve()


def test_simplified_polygons_stay_near(odd, exported):
    """Pixels that change lie within the tolerance of an outline."""
    pytest.importorskip("rasterio")
    from scipy.ndimage import binary_dilation

    found, _, _ = by_pycocotools(exported("coco", polygons=True, simplify=1.0, min_area=9) / "annotations/instances_train.json")
    wanted = odd.maps["ring"]
    edge = binary_dilation((np.diff(wanted, axis=0, prepend=0) != 0) | (np.diff(wanted, axis=1, prepend=0) != 0), iterations=1)
    assert not (found["ring"] != np.where(wanted == 2, 0, wanted))[~edge].any()


@pytest.mark.parametrize("ignore", ["background", "class"])
@pytest.mark.parametrize("instances", [False, True])
def test_cvat_masks(odd, exported, ignore, instances):
    """CVAT's rules: a line an index in order, no 255, names as in the task, and an object for each pixel of a class.

    `SSR_READERS` has datumaro, on which CVAT's importer stands, read the same zip.
    """
    folder = exported("cvat", ignore=ignore, instances=instances)
    task = [label["name"] for label in json.loads((folder / "labels.json").read_text(encoding="utf-8"))]
    assert task == [*NAMES, *(["_ignore"] if ignore == "class" else [])]
    with zipfile.ZipFile(folder / "masks.zip") as archive:
        lines = archive.read("labelmap.txt").decode().splitlines()[1:]
        names, colours = zip(*((line.split(":")[0], line.split(":")[1]) for line in lines), strict=True)
        assert list(names) == ["background", *task]
        assert len(set(colours)) == len(colours)
        ids = archive.read("ImageSets/Segmentation/default.txt").decode().splitlines()
        found = {}
        for image_id in ids:
            with Image.open(archive.open(f"SegmentationClass/{image_id}.png")) as picture:
                found[image_id] = np.asarray(picture)
                shown = np.asarray(picture.convert("RGB"))  # readers that see colours find those of the list
            with Image.open(archive.open(f"SegmentationObject/{image_id}.png")) as picture:
                objects = np.asarray(picture)
            rgb = np.array([[int(part) for part in colour.split(",")] for colour in colours])
            np.testing.assert_array_equal(shown, rgb[found[image_id]])
            assert ((objects > 0) == (found[image_id] > 0)).all()
            assert all(len(np.unique(found[image_id][objects == number])) == 1 for number in np.unique(objects))
            if not instances:
                assert len(np.unique(objects)) == len(np.unique(found[image_id]))
    same(found, expected(odd, len(NAMES) + 1 if ignore == "class" else 0))


@pytest.mark.parametrize("instances", [False, True])
def test_cvat_xml_by_its_sdk(odd, exported, instances):
    masks = pytest.importorskip("cvat_sdk.masks")
    found = {}
    for image in ET.parse(exported("cvat-xml", instances=instances) / "annotations.xml").getroot().iter("image"):
        size = int(image.get("height")), int(image.get("width"))
        found[image.get("name").removesuffix(".png")] = label_map = np.zeros(size, np.uint8)
        for mask in image.iter("mask"):
            left, top, width, height = (int(mask.get(name)) for name in ("left", "top", "width", "height"))
            points = [int(run) for run in mask.get("rle").split(",")] + [left, top, left + width - 1, top + height - 1]
            label_map[masks.decode_mask(points, image_width=size[1], image_height=size[0])] = NAMES.index(mask.get("label")) + 1
    same(found, expected(odd))


def test_every_format_that_is_named_is_there():
    assert set(FORMATS) == set(EXPORTS)


def test_a_name_that_a_format_cannot_hold(odd, tmp_path):
    names = tuple("a:b" if index == 3 else name for index, name in enumerate(NAMES))
    dataset = replace(odd.workspace.dataset, classes=replace(odd.workspace.dataset.classes, names=names, prompts=names))
    other = replace(odd.workspace, photos=dataset)
    with pytest.raises(UsageError, match="'a:b' cannot be written in this format"):
        export.run(other, ExportOptions(format="cvat", output=tmp_path / "x"))
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(("options", "message"), [
    ({"format": ""}, "expected a format"),
    ({"format": "cvatt"}, "no format 'cvatt'.*did you mean 'cvat'"),
    ({"format": "cvat", "polygons": True}, "--polygons has no meaning for cvat"),
    ({"format": "cvat", "ignore": "keep"}, "cvat takes unsure pixels as background or class, not as keep"),
    ({"format": "coco", "what": "predictions"}, "expected label maps of split train in .*predictions.*found none"),
    ({"format": "coco", "what": "/nowhere"}, "found none.*a folder of PNGs"),
])  # fmt: skip
def test_what_is_refused(odd, tmp_path, options, message):
    with pytest.raises(SsrError, match=message):
        export.run(odd.workspace, ExportOptions(output=tmp_path / "x", **options))
    assert not (tmp_path / "x").exists()


def test_a_folder_of_others_is_left_alone_and_an_export_is_replaced_whole(odd, exported, tmp_path, monkeypatch):
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="no export, and is not overwritten"):
        exported("coco")
    (tmp_path / "export" / "mine.txt").unlink()
    folder = exported("cvat")
    before = (folder / "masks.zip").read_bytes()
    real = export.read_mask

    def dies(path, classes):
        if path.stem == odd.order[-1]:
            raise KeyboardInterrupt
        return real(path, classes)

    monkeypatch.setattr(export, "read_mask", dies)
    with pytest.raises(KeyboardInterrupt):
        exported("cvat", instances=True)
    assert (folder / "masks.zip").read_bytes() == before
    monkeypatch.undo()
    (tmp_path / ".export.new.tmp").mkdir()  # left by a kill
    exported("cvat")
    assert (folder / "masks.zip").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"export", ".export.lock"}


def test_shards_make_the_whole(odd, tmp_path):
    parts = []
    for index in range(2):
        options = ExportOptions(format="coco", output=tmp_path / str(index), shard=f"{index}/2")
        folder = export.run(odd.workspace, options).folder
        parts.append(json.loads((folder / "annotations/instances_train.json").read_text(encoding="utf-8")))
    whole = export.run(odd.workspace, ExportOptions(format="coco", output=tmp_path / "whole")).folder
    content = json.loads((whole / "annotations/instances_train.json").read_text(encoding="utf-8"))
    images = sorted(parts[0]["images"] + parts[1]["images"], key=lambda image: image["id"])
    assert images == content["images"]
    annotations = parts[0]["annotations"] + parts[1]["annotations"]
    assert len({entry["id"] for entry in annotations}) == len(annotations) == len(content["annotations"])


def test_bad_label_maps_are_named_and_left_out(odd, tmp_path):
    folder = Path(shutil.copytree(odd.root / "work/masks", tmp_path / "maps"))
    Image.fromarray(np.zeros((3, 3), np.uint8)).save(folder / "ring.png")
    (folder / "whole.png").write_bytes(b"no picture")
    run = odd.workspace.run.model_copy(update={"max_failures": -1})
    workspace = replace(odd.workspace, work=tmp_path / "work", run=run)
    done = export.run(workspace, ExportOptions(format="cvat", what=str(folder)))
    assert (done.done, done.failed) == (4, 2)
    assert done.folder == tmp_path / "work/exports/cvat-train-maps"
    said = (tmp_path / "work/failures.jsonl").read_text(encoding="utf-8")
    assert "the label map is (3, 3), the image (20, 30)" in said
    assert "whole.png" in said


def test_photos_without_a_dataset(odd, tmp_path, ssr, monkeypatch):
    """Label maps that `ssr predict --output` wrote beside their manifest: no work directory and no class list is needed."""
    monkeypatch.chdir(tmp_path)
    folder = Path(shutil.copytree(odd.root / "work/masks", tmp_path / "maps"))
    assert "--classes FILE" in ssr("export", "coco", folder, "--images", odd.root / "images", code=2).err
    made = {"stage": "predict", "settings": {"classes": NAMES}, "dataset": {}}
    (tmp_path / "maps.json").write_text(json.dumps(made), encoding="utf-8")
    said = ssr("export", "coco", folder, "--images", odd.root / "images", "--output", tmp_path / "out").out
    assert "6 images in" in said
    same(by_pycocotools(tmp_path / "out/annotations/instances_images.json")[0], expected(odd))


def rle_pack(data: list[int]) -> list[int]:
    """thi-ng's rle-pack, bit by bit as its documentation has it: the slow twin of ours."""
    bits = "".join(f"{byte:08b}" for byte in data)
    place = 0

    def take(width: int) -> int:
        nonlocal place
        place += width
        return int(bits[place - width : place], 2)

    count, word = take(32), take(5) + 1
    sizes = [take(4) + 1 for _ in range(4)]
    out: list[int] = []
    while len(out) < count:
        run, length = take(1), take(sizes[take(2)]) + 1
        out += [take(word)] * length if run else [take(word) for _ in range(length)]
    assert len(out) == count
    assert len(bits) - place < 8
    return out


@pytest.mark.parametrize("instances", [False, True])
def test_label_studio_by_the_documented_brush(odd, exported, instances):
    """The result's tools are those of the interface: Label Studio shows nothing otherwise."""
    folder = exported("label-studio", instances=instances, image_url="https://host/p h/")
    interface = ET.parse(folder / "interface.xml").getroot()
    tool, image = interface.find("BrushLabels"), interface.find("Image")
    assert [label.get("value") for label in tool] == list(NAMES)
    found = {}
    for task in json.loads((folder / "tasks.json").read_text(encoding="utf-8")):
        assert task["data"]["image"].isascii()
        assert task["data"]["image"].startswith("https://host/p h/")
        height, width = odd.maps[task["data"]["image_id"]].shape
        found[task["data"]["image_id"]] = label_map = np.zeros((height, width), np.uint8)
        (prediction,) = task["predictions"]
        for result in prediction["result"]:
            assert (result["from_name"], result["to_name"]) == (tool.get("name"), image.get("name"))
            assert (result["original_height"], result["original_width"]) == (height, width)
            brush = np.array(rle_pack(result["value"]["rle"]), np.uint8).reshape(height, width, 4)[..., 3]
            (name,) = result["value"]["brushlabels"]
            label_map[brush > 0] = NAMES.index(name) + 1
    same(found, expected(odd))


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (259, 257)])
@pytest.mark.parametrize("fill", [0.0, 0.02, 0.5, 1.0])
def test_brushes_of_any_run(shape, fill):
    """Runs of one value over 16 bits long, of all four widths, and none."""
    mask = np.random.default_rng(1).random(shape) < fill
    data = encode_brush(mask)
    assert (np.array(rle_pack(data)).reshape(*shape, 4)[..., 3] == 255 * mask).all()
    assert (decode_brush(bytes(data), shape) == mask).all()
    assert (from_run_lengths(run_lengths(mask), shape) == mask).all()


def near_edges(label_map):
    """Pixels within one pixel of another value."""
    from scipy.ndimage import maximum_filter, minimum_filter

    return maximum_filter(label_map, 3) != minimum_filter(label_map, 3)


@pytest.mark.parametrize("holes", ["bridge", "fill"])
def test_yolo_polygons_as_ultralytics_fills_them(odd, exported, holes):
    """`polygon2mask` truncates corners and fills by OpenCV, border included: pixels beside an outline may differ, no others."""
    pytest.importorskip("rasterio")
    cv2 = pytest.importorskip("cv2")
    folder = exported("yolo-seg", holes=holes)
    config = yaml.safe_load((folder / "data.yaml").read_text(encoding="utf-8"))
    assert config["names"] == dict(enumerate(NAMES))
    assert config["path"] == str(folder)
    for image_id, mask in expected(odd).items():
        assert (folder / config["train"] / f"{image_id}.png").is_file()
        height, width = mask.shape
        found = np.zeros_like(mask)
        for line in (folder / f"labels/train/{image_id}.txt").read_text().splitlines():
            index, *numbers = line.split()
            corners = np.array(numbers, np.float64).reshape(-1, 2)
            assert len(corners) >= 3
            assert corners.min() >= 0
            assert corners.max() <= 1
            cv2.fillPoly(found, [(corners * (width, height)).astype(np.int32)], int(index) + 1)
        wrong = (found != mask) & ~near_edges(mask)
        if holes == "bridge":
            assert not wrong.any(), image_id
        else:
            assert wrong.any() == (image_id == "ring")


def test_holes_may_be_refused(odd, tmp_path):
    pytest.importorskip("rasterio")
    run = odd.workspace.run.model_copy(update={"max_failures": 1})
    workspace = replace(odd.workspace, run=run)
    done = export.run(workspace, ExportOptions(format="yolo-seg", holes="refuse", output=tmp_path / "x"))
    assert (done.done, done.failed) == (5, 1)
    assert "'Straßenschild' has a hole" in (odd.workspace.work / "failures.jsonl").read_text(encoding="utf-8")
    assert not (tmp_path / "x/labels/train/ring.txt").exists()


def by_opencv(path):
    cv2 = pytest.importorskip("cv2")
    return cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)


def by_pillow(path):
    with Image.open(path) as picture:
        return np.asarray(picture)


@pytest.mark.parametrize(("form", "masks", "images", "read"), [
    ("yolo-sem", "masks/train", "images/train", by_opencv),
    ("fiftyone", "labels", "data", by_opencv),
    ("voc", "SegmentationClass", "JPEGImages", by_pillow),
    ("hf", "train/masks", "train/images", by_pillow),
])  # fmt: skip
def test_folders_of_masks(odd, exported, form, masks, images, read):
    """As their readers decode them: OpenCV would make colours of a palette."""
    folder = exported(form)
    same({path.stem: read(path) for path in (folder / masks).iterdir()}, odd.maps)
    assert {path.stem for path in (folder / images).iterdir()} == set(odd.maps)
    if form == "yolo-sem":
        config = yaml.safe_load((folder / "data.yaml").read_text(encoding="utf-8"))
        assert (config["masks_dir"], config["names"]) == ("masks", dict(enumerate(("background", *NAMES))))
    elif form == "hf":
        rows = [json.loads(line) for line in (folder / "train/metadata.jsonl").read_text(encoding="utf-8").splitlines()]
        assert all((folder / "train" / row[key]).is_file() for row in rows for key in row)
        assert list(json.loads((folder / "id2label.json").read_text(encoding="utf-8")).values()) == ["background", *NAMES]
    elif form == "voc":
        assert (folder / "ImageSets/Segmentation/train.txt").read_text(encoding="utf-8").splitlines() == odd.order
    else:
        code = (folder / "README.md").read_text(encoding="utf-8").split("```")[1].removeprefix("python\n")
        (targets,) = [
            node.value
            for node in ast.walk(ast.parse(code))
            if isinstance(node, ast.Assign) and "mask_targets" in ast.unparse(node)
        ]
        assert ast.literal_eval(targets) == {"ground_truth": dict(enumerate(("background", *NAMES)))}


def test_mmseg_by_mmsegmentation(odd, exported):
    pytest.importorskip("mmseg")
    from pipelines.mmsegmentation.imports import import_mmsegmentation

    import_mmsegmentation()
    from mmengine.config import Config
    from mmseg.datasets import BaseSegDataset
    from mmseg.datasets.transforms import LoadAnnotations

    folder = exported("mmseg")
    config = dict(Config.fromfile(folder / "dataset.py")["dataset"])
    assert config.pop("type") == "BaseSegDataset"
    dataset = BaseSegDataset(**config, pipeline=[])
    assert dataset.metainfo["classes"] == ("background", *NAMES)
    load = LoadAnnotations()
    entries = [dataset.get_data_info(index) for index in range(len(dataset))]
    assert all(Path(entry["img_path"]).is_file() for entry in entries)
    same({Path(entry["img_path"]).stem: load(entry)["gt_seg_map"] for entry in entries}, odd.maps)
