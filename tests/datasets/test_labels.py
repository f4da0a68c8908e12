from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image

from pipelines.datasets.classes import VOC12, palette
from pipelines.datasets.labels import LabelSource, convert_labels, labels_from_masks
from pipelines.errors import ImageError, SsrError, UsageError

EXPECTED = {"a": (0, 14), "b": ()}


def make(source: str, folder: Path) -> Path:
    match source:
        case "xml":
            names = {"a": "<object><name>person</name></object><object><name>aeroplane</name></object>", "b": ""}
            for key, objects in names.items():
                (folder / f"{key}.xml").write_text(f"<annotation>{objects}</annotation>")
            return folder
        case "coco":
            content = {
                "categories": [{"id": 1, "name": "person"}, {"id": 5, "name": "aeroplane"}],
                "images": [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}],
                "annotations": [{"image_id": 1, "category_id": 5}, {"image_id": 1, "category_id": 1}],
            }
            (folder / "i.json").write_text(json.dumps(content))
            return folder / "i.json"
        case "masks":
            mask(folder / "a.png", [0, 1, 15, 255])
            mask(folder / "b.png", [0, 0, 255, 255], "L")
            return folder
        case "csv":
            (folder / "l.csv").write_text("image,labels\na,person;aeroplane\nb,\n")
            return folder / "l.csv"
        case "yolo":
            (folder / "labels").mkdir()
            (folder / "labels/a.txt").write_text("1 .5 .5 1 1\n0 .5 .5 .1 .1\n1 0 0 1 1\n")
            (folder / "labels/b.txt").write_text("")
            (folder / "data.yaml").write_text("names: {0: person, 1: aeroplane}\n")
            return folder
        case _:
            rows = {"a": np.eye(20)[[0, 14]].sum(0), "b": np.zeros(20)}
            np.save(folder / "l.npy", np.array(rows, dtype=object), allow_pickle=True)
            return folder / "l.npy"


def mask(path: Path, values: list[int], mode: str = "P") -> None:
    image = Image.fromarray(np.array([values], np.uint8), "L" if mode == "L" else None)
    if mode == "P":
        image = Image.frombytes("P", (len(values), 1), bytes(values))
        image.putpalette(palette().tobytes())
    image.save(path)


SEVERAL = [source for source in get_args(LabelSource) if source != "folders"]  # a folder is one class


@pytest.mark.parametrize("source", SEVERAL)
def test_sources_agree(tmp_path: Path, source: LabelSource) -> None:
    path = make(source, tmp_path)
    assert convert_labels(source, path, VOC12).labels == EXPECTED
    assert list(convert_labels(source, path, VOC12, ["b", "a"]).labels) == ["b", "a"]
    assert convert_labels(source, path, VOC12, ["a"]).labels == {"a": (0, 14)}
    with pytest.raises(SsrError) as caught:
        convert_labels(source, path, VOC12, ["a", "zz"])
    assert "zz" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("source", SEVERAL)
def test_only_masks_opens_masks(tmp_path: Path, source: LabelSource, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(*_: object, **__: object) -> None:
        raise AssertionError("an image was opened")

    path = make(source, tmp_path)
    monkeypatch.setattr(Image, "open", opened)
    if source == "masks":
        with pytest.raises(ImageError, match="an image was opened"):
            convert_labels(source, path, VOC12)
    else:
        assert convert_labels(source, path, VOC12).labels == EXPECTED


@pytest.mark.parametrize("source", ["xml", "masks"])
def test_folder_sources_need_a_folder_with_something(tmp_path: Path, source: LabelSource) -> None:
    with pytest.raises(UsageError, match="expected labels, found none"):
        convert_labels(source, tmp_path, VOC12)
    with pytest.raises(UsageError, match="expected a folder of"):
        convert_labels(source, tmp_path / "absent", VOC12)


@pytest.mark.parametrize(
    ("values", "mode", "message"),
    [([0, 21], "P", r"a\.png: expected values 0\.\.20 and 255, found 21"), ([0, 254], "L", "found 254")],
)
def test_index_out_of_range(tmp_path: Path, values: list[int], mode: str, message: str) -> None:
    mask(tmp_path / "a.png", values, mode)
    with pytest.raises(ImageError, match=message):
        labels_from_masks(tmp_path, VOC12, ["a"])


@pytest.mark.parametrize("mode", ["RGB", "1", "I;16", "LA"])
def test_masks_in_other_modes(tmp_path: Path, mode: str) -> None:
    Image.new(mode, (2, 2)).save(tmp_path / "a.png")
    with pytest.raises(ImageError, match=f"expected class indices in .*, found (colours|pixels) of mode {mode}"):
        labels_from_masks(tmp_path, VOC12, ["a"])


def test_mask_ids_are_checked_and_jpeg_is_no_mask(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has path separators"):
        labels_from_masks(tmp_path, VOC12, ["../a"])
    Image.new("L", (2, 2)).save(tmp_path / "a.png", "JPEG")
    with pytest.raises(ImageError, match=r"expected a PNG mask in .*a\.png, found a file that cannot be read"):
        labels_from_masks(tmp_path, VOC12, ["a"])


def test_real_masks_agree_with_the_label_file(shared_data: Path) -> None:
    root = shared_data / "data/voc12-mini/VOCdevkit/VOC2012"
    listed = convert_labels("csv", root / "labels.csv", VOC12).labels
    ids = (root / "ImageSets/Segmentation/val.txt").read_text().split()
    assert convert_labels("masks", root / "SegmentationClass", VOC12, ids).labels == {key: listed[key] for key in ids}
