"""Folders of images and masks for VOC, mmsegmentation, FiftyOne and Hugging Face's datasets."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from contextlib import contextmanager

from pipelines.datasets.classes import palette
from pipelines.exports.base import Add, Format, Item, Plan, place_photo, png_bytes, text_files, write_bytes
from pipelines.exports.cvat import objects_of


@contextmanager
def write_voc(plan: Plan) -> Iterator[Add]:
    """Write VOC2012's ``JPEGImages``, ``SegmentationClass``, list of names and, with --instances, ``SegmentationObject``."""
    with text_files(plan.folder / "ImageSets/Segmentation", f"{plan.split}.txt") as (names,):

        def add(item: Item) -> None:
            objects = objects_of(item.label_map, instances=True) if plan.options.instances else None
            write_bytes(plan.folder / f"SegmentationClass/{item.image_id}.png", png_bytes(item.label_map, palette()))
            if objects is not None:
                write_bytes(plan.folder / f"SegmentationObject/{item.image_id}.png", png_bytes(objects, palette()))
            place_photo(plan, item, plan.folder / "JPEGImages" / item.file_name)
            names.write(f"{item.image_id}\n")

        yield add
    with text_files(plan.folder, "classes.txt") as (file,):
        file.writelines(f"{name}\n" for name in plan.names)


@contextmanager
def write_mmseg(plan: Plan) -> Iterator[Add]:
    """Write ``img_dir/SPLIT``, ``ann_dir/SPLIT`` and ``dataset.py``, a config that names them.

    mmsegmentation takes one suffix for all images: if they differ, all become .jpg, because readers use the content.
    """
    suffix = plan.suffix or ".jpg"

    def add(item: Item) -> None:
        write_bytes(plan.folder / "ann_dir" / plan.split / f"{item.image_id}.png", png_bytes(item.label_map, palette()))
        place_photo(plan, item, plan.folder / "img_dir" / plan.split / f"{item.image_id}{suffix}")

    yield add
    dataset = {
        "type": "BaseSegDataset",
        "data_root": str(plan.place),
        "data_prefix": {"img_path": f"img_dir/{plan.split}", "seg_map_path": f"ann_dir/{plan.split}"},
        "img_suffix": suffix,
        "seg_map_suffix": ".png",
        "metainfo": {"classes": plan.names, "palette": plan.colours},
        "reduce_zero_label": False,
        "ignore_index": 255,
    }
    with text_files(plan.folder, "dataset.py") as (file,):
        file.write(f"dataset = {dataset!r}\nnum_classes = {len(plan.names)}\n")


@contextmanager
def write_fiftyone(plan: Plan) -> Iterator[Add]:
    """Write ``data``, ``labels``, ``confidence.csv``, and ``README.md`` with the lines that load them."""
    with text_files(plan.folder, "confidence.csv", "README.md") as (confidence, readme):
        rows = csv.writer(confidence)
        rows.writerow(("image", "confidence"))
        readme.write(_FIFTYONE.format(place=str(plan.place), targets=dict(enumerate(plan.names))))

        def add(item: Item) -> None:
            write_bytes(plan.folder / f"labels/{item.image_id}.png", png_bytes(item.label_map, None))
            place_photo(plan, item, plan.folder / "data" / item.file_name)
            rows.writerow((item.image_id, "" if item.confidence is None else item.confidence))

        yield add


_FIFTYONE = """\
```python
import csv
from pathlib import Path

import fiftyone

folder = Path({place!r})
dataset = fiftyone.Dataset.from_dir(
    data_path=str(folder / "data"), labels_path=str(folder / "labels"), dataset_type=fiftyone.types.ImageSegmentationDirectory
)
dataset.mask_targets = {{"ground_truth": {targets!r}}}
dataset.save()
with (folder / "confidence.csv").open(encoding="utf-8") as file:
    confidence = {{row["image"]: row["confidence"] for row in csv.DictReader(file)}}
for sample in dataset.iter_samples(autosave=True, progress=True):
    sample["confidence"] = float(confidence[Path(sample.filepath).stem] or "nan")
fiftyone.launch_app(dataset.sort_by("confidence"))
```
"""


@contextmanager
def write_hf(plan: Plan) -> Iterator[Add]:
    """Write ``SPLIT/images``, ``SPLIT/masks`` and ``SPLIT/metadata.jsonl`` for ``load_dataset("imagefolder")``."""
    folder = plan.folder / plan.split
    with text_files(folder, "metadata.jsonl") as (metadata,):

        def add(item: Item) -> None:
            write_bytes(folder / f"masks/{item.image_id}.png", png_bytes(item.label_map, None))
            place_photo(plan, item, folder / "images" / item.file_name)
            row = {"file_name": f"images/{item.file_name}", "mask_file_name": f"masks/{item.image_id}.png"}
            metadata.write(json.dumps(row, ensure_ascii=False) + "\n")

        yield add
    with text_files(plan.folder, "id2label.json") as (file,):
        file.write(json.dumps(dict(enumerate(plan.names)), ensure_ascii=False, indent=1) + "\n")


_IGNORE = ("keep", "background", "class")
VOC = Format(write_voc, _IGNORE, takes=("instances",), photos=True)
"""See `write_voc`."""
MMSEG = Format(write_mmseg, _IGNORE, photos=True)
"""See `write_mmseg`."""
FIFTYONE = Format(write_fiftyone, _IGNORE, photos=True, confidence=True)
"""See `write_fiftyone`."""
HF = Format(write_hf, _IGNORE, photos=True)
"""See `write_hf`."""
