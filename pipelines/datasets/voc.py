"""The layout of PASCAL VOC."""

from __future__ import annotations

import shlex
from collections.abc import Container, Iterable
from pathlib import Path
from xml.etree.ElementTree import ParseError  # the class only; defusedxml parses

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from pipelines.datasets.base import Dataset, Sample
from pipelines.datasets.class_names import clean_class_name
from pipelines.datasets.classes import VOC12, ClassList, load_class_list
from pipelines.datasets.image_files import ImageFiles
from pipelines.datasets.label_files import holds_tags, read_label_file, select_labels, understood
from pipelines.datasets.names import MAX_ID_BYTES, check_image_id
from pipelines.datasets.splits import parse_split, read_regular, split_file
from pipelines.errors import SsrError, UsageError
from pipelines.options.sources import DatasetOptions


def load_voc(options: DatasetOptions) -> Dataset:
    """List the images and labels of a VOC split from ``ImageSets``, ``JPEGImages``, and ``Annotations`` or a label file.

    ``train_aug`` has its masks in ``SegmentationClassAug``. For it and for splits from a file, masks that one mask folder lacks
    are taken from the other.
    """
    root = _root(options.root)
    classes = load_class_list(options.classes) if options.classes else VOC12
    listed = split_file(options.split) or _image_set(root, options.split)
    label_file = options.labels
    if label_file is None and not (root / "Annotations").is_dir() and (root / "labels.csv").is_file():
        label_file = root / "labels.csv"
    rows = None if label_file is None else read_label_file(label_file, classes)
    split = parse_split(listed, _Annotated(root / "Annotations") if rows is None else rows)
    ids, words = split.ids, split.understood
    if label_file is not None and rows is not None:
        labels = select_labels(rows, ids, label_file, options.absent_is_empty)
        words = (*understood(label_file), *words)
    elif (root / "Annotations").is_dir():
        labels = labels_from_xml(root / "Annotations", classes, ids, options.absent_is_empty)
    else:
        raise UsageError(f"{root}: expected labels in Annotations/*.xml or labels.csv, found neither", "--labels FILE")
    augmented = listed.stem in {"train_aug", "trainaug"}
    names = ("SegmentationClassAug", "SegmentationClass") if augmented else ("SegmentationClass", "SegmentationClassAug")
    masks = [root / name for name in names if (root / name).is_dir()]
    if not augmented and split_file(options.split) is None:
        masks = [folder for folder in masks if folder.name == "SegmentationClass"]
    place = ImageFiles(root / "JPEGImages", preferred=".jpg")
    return Dataset(
        kind="voc",
        root=root,
        split=listed.stem,
        classes=classes,
        samples=tuple(Sample(image_id, place(image_id), labels[image_id], options.orient) for image_id in ids),
        mask_folder=masks[0] if masks else None,
        mask_fallback=masks[1] if len(masks) > 1 else None,
        understood=words,
        tagged=holds_tags(label_file),
    )


class _Annotated(Container[str]):
    """The ids that have an annotation file."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __contains__(self, image_id: object) -> bool:
        text = str(image_id)
        safe = not {"/", "\\", "\0"} & set(text) and len(text.encode(errors="replace")) <= MAX_ID_BYTES
        return safe and (self._folder / f"{text}.xml").is_file()


def labels_from_xml(
    folder: Path, classes: ClassList, ids: Iterable[str] | None = None, absent_is_empty: bool = False
) -> dict[str, tuple[int, ...]]:
    """Read the labels of VOC annotations: every ``object/name``, difficult and truncated ones too.

    Args:
        folder: Folder of ``<image_id>.xml``.
        classes: Class list in which the names are looked up.
        ids: Images to read; None reads every XML file, in name order.
        absent_is_empty: Whether an image without a file has no class, as in labelImg's output.

    Raises:
        SsrError: A file is missing, broken, or uses entities.
        UsageError: An object's class is not in the list.
    """
    if ids is None:
        ids = [check_image_id(path.stem, str(folder)) for path in sorted(folder.glob("*.xml"))]
    files = {image_id: folder / f"{image_id}.xml" for image_id in ids}
    absent = [image_id for image_id, path in files.items() if not path.exists()]
    if absent and not absent_is_empty:
        first = files[absent[0]]
        raise SsrError(
            f"{folder}: cannot read the annotation of {len(absent)} of {len(files)} images, first {first}: No such file",
            "--absent-is-empty if these images have no class, or --labels FILE for a label file",
        )
    gone = set(absent)
    return {
        image_id: () if image_id in gone else classes.indices(_xml_names(path), str(path)) for image_id, path in files.items()
    }


def names_in_xml(folder: Path) -> tuple[str, ...]:
    """Return every class name in a folder of VOC annotations, sorted; errors as in `labels_from_xml`."""
    return tuple(sorted({name for path in sorted(folder.glob("*.xml")) for name in _xml_names(path)}))


def _xml_names(path: Path) -> list[str]:
    try:
        annotation = fromstring(read_regular(path))
    except OSError as error:
        raise SsrError(f"{path}: cannot read the annotation: {error.strerror}", "--labels FILE for a label file") from None
    except DefusedXmlException as error:
        raise SsrError(f"{path}: refused: XML with {type(error).__name__} content") from None
    except (ParseError, ValueError, LookupError) as error:
        raise SsrError(f"{path}: broken XML: {' '.join(str(error).split())}") from None
    if annotation.tag != "annotation":
        raise SsrError(f"{path}: expected VOC's <annotation>, found <{annotation.tag:.60}>")
    return [clean_class_name(element.text or "") for element in annotation.iterfind("object/name")]


def _root(root: Path | None) -> Path:
    expected = "expected VOC's folder with JPEGImages and ImageSets"
    if root is None:
        raise UsageError(f"{expected}, found no dataset root", "--root VOCdevkit/VOC2012")
    if (root / "JPEGImages").is_dir():
        return root
    inner = sorted(path.parent for pattern in ("*/JPEGImages", "*/*/JPEGImages") for path in root.glob(pattern))
    hint = f"--root {shlex.quote(str(inner[-1]) if inner else 'VOCdevkit/VOC2012')}"
    raise UsageError(f"{expected}, found no JPEGImages in {root}", hint)


def voc_splits(root: Path) -> tuple[str, ...] | None:
    """Return the names of the splits of a VOC folder; None if there is no ``JPEGImages``, here or up to two folders down."""
    if any(any(root.glob(pattern)) for pattern in ("JPEGImages", "*/JPEGImages", "*/*/JPEGImages")):
        return tuple(sorted({path.stem for folder in _set_folders(root) for path in folder.glob("*.txt")}))
    return None


def _set_folders(root: Path) -> tuple[Path, Path]:
    return root / "ImageSets" / "Segmentation", root / "ImageSets" / "Main"


def _image_set(root: Path, split: str) -> Path:
    folders = _set_folders(root)
    for folder in folders:
        if (folder / f"{split}.txt").is_file():
            return folder / f"{split}.txt"
    there = sorted(path.stem for folder in folders for path in folder.glob("*.txt"))[:8]
    raise UsageError(
        f"{root}: expected ImageSets/Segmentation/{split}.txt, found {', '.join(there) or 'no splits'}",
        "--split NAME or --split FILE.txt",
    )
