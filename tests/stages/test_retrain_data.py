"""What a retraining learns from: sound label maps and how much they hold, in folders as mmsegmentation wants them."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipelines.datasets.base import Dataset, Sample
from pipelines.datasets.classes import ClassList
from pipelines.errors import SsrError, TooManyFailures, UsageError
from pipelines.evaluation.plausibility import nothing_seen
from pipelines.execution.failures import Failures
from pipelines.execution.progress import Silent
from pipelines.stages.retrain.data import LabelMaps, checked, ground_truth, pseudo_masks, split_files
from pipelines.workdir.corrected import Corrected
from tests.fixtures.heard import Heard

CLASSES = ("cat", "dog", "bird")
SIZES = {"a": (12, 7), "b.c": (5, 9), "my photo": (8, 8), "d": (6, 4)}


def write(path: Path, mask: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask, mode="L").save(path)


@pytest.fixture
def pairs(tmp_path: Path) -> list[tuple[Sample, Path]]:
    """Photos with a random label map each; bird is in none."""
    rng, found = np.random.default_rng(0), []
    for image_id, (width, height) in SIZES.items():
        photo, mask = tmp_path / f"photos/{image_id}.jpg", tmp_path / f"masks/{image_id}.png"
        photo.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(photo)
        write(mask, rng.choice(np.array([0, 0, 0, 1, 1, 2, 255], np.uint8), (height, width)))
        found.append((Sample(image_id, photo, ()), mask))
    return found


def failures(folder: Path, progress: Heard, limit: int = -1) -> Failures:
    return Failures(folder / "failures.jsonl", "retrain", limit, progress)


def counted(paths: list[Path]) -> tuple[list[int], float]:
    """Pixels of background and each class, and the ignored share, one pixel at a time."""
    counts, ignored, pixels = [0] * (len(CLASSES) + 1), 0, 0
    for path in paths:
        for value in Image.open(path).tobytes():
            pixels += 1
            if value == 255:
                ignored += 1
            else:
                counts[value] += 1
    return counts, ignored / pixels


def test_counts_are_those_of_all_pixels(pairs, tmp_path) -> None:
    progress = Heard()
    maps = checked(pairs, CLASSES, failures(tmp_path, progress), progress)
    counts, ignored = counted([path for _, path in pairs])
    assert maps.counts.tolist() == counts
    assert counts[3] == 0 < min(counts[:3])
    assert maps.ignored == pytest.approx(ignored, abs=1e-12)
    assert list(zip(maps.samples, maps.paths, strict=True)) == pairs  # in their order
    assert (progress.advanced, progress.notes) == (len(pairs), [])


@pytest.mark.parametrize(
    "counts", [(60, 30, 10, 0), (1, 1, 1, 1), (10**9, 1, 10**5, 0), (0, 5, 0, 0), (2**40, 2**20, 2**10, 2**5)]
)
def test_class_weights(counts: tuple[int, ...]) -> None:
    found = LabelMaps((), (), np.array(counts), 0.0, nothing_seen(3)).class_weights()
    total = sum(counts)
    rareness = [(total / n) ** 0.5 if n else 0 for n in counts]
    mean = sum(n * one for n, one in zip(counts, rareness, strict=True)) / total
    assert found == pytest.approx([one / mean if n else 1 for n, one in zip(counts, rareness, strict=True)], abs=1e-4)
    assert sum(n * weight for n, weight in zip(counts, found, strict=True)) / total == pytest.approx(1, abs=1e-3)
    assert [type(weight) for weight in found] == [float] * len(counts)  # goes into a config file


def dotted(value: int) -> Callable[[Path, Path], None]:
    """Gives the mask one pixel of a value."""

    def spoil(photo: Path, mask: Path) -> None:
        values = np.array(Image.open(mask))
        values[-1, -1] = value
        write(mask, values)

    return spoil


BAD: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    # name: what spoils photo or mask, what is said
    "wrong size": (
        lambda _, mask: write(mask, np.zeros((8, 9), np.uint8)),
        r"d\.png is 9 x 8, its image 6 x 4 \(ssr refine --force",
    ),
    "turned": (lambda _, mask: write(mask, np.array(Image.open(mask)).T), "d.png is 4 x 6, its image 6 x 4"),
    "beyond": (dotted(4), r"d\.png: expected values 0\.\.3 and 255, found 4 \(1 pixels\) \(--classes"),
    "far beyond": (dotted(254), r"expected values 0\.\.3 and 255, found 254"),
    "truncated": (lambda _, mask: mask.write_bytes(mask.read_bytes()[:-30]), "d.png, found a file that cannot be read"),
    "colours": (
        lambda _, mask: Image.open(mask).convert("RGB").save(mask),
        "expected class indices in .*d.png, found colours of mode RGB",
    ),
    "no photo": (lambda photo, _: photo.unlink(), "d.jpg"),
    "cut photo": (lambda photo, _: photo.write_bytes(photo.read_bytes()[:-100]), "d.jpg"),
    "no mask": (lambda _, mask: mask.unlink(), "found no file .*d.png"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_one_is_left_out_and_noted(pairs, tmp_path, name) -> None:
    spoil, expected = BAD[name]
    spoil(pairs[3][0].image_path, pairs[3][1])
    progress = Heard()
    noted = failures(tmp_path, progress)
    maps = checked(pairs, CLASSES, noted, progress)
    assert list(zip(maps.samples, maps.paths, strict=True)) == pairs[:3]
    counts, ignored = counted([path for _, path in pairs[:3]])
    assert (maps.counts.tolist(), maps.ignored) == (counts, pytest.approx(ignored))
    assert [json.loads(line)["image"] for line in noted.path.read_text().splitlines()] == ["d"]
    (said,) = progress.notes
    assert said.isprintable()
    assert re.search(expected, said)
    message = expected.partition(r" \(")[0]
    with pytest.raises(SsrError, match=f"^d: .*{message}.*--val-split"):  # where there may be none
        checked(pairs, CLASSES, None, Silent())


def test_more_bad_ones_than_allowed(pairs, tmp_path) -> None:
    for _, mask in pairs[:2]:
        mask.write_bytes(mask.read_bytes()[:-30])
    progress = Heard()
    assert len(checked(pairs, CLASSES, failures(tmp_path, progress, limit=2), progress).samples) == 2
    with pytest.raises(TooManyFailures, match="--max-failures allows 1"):
        checked(pairs, CLASSES, failures(tmp_path, progress, limit=1), progress)


@pytest.mark.parametrize("case", ["all bad", "all ignored", "none"])
def test_nothing_left(pairs, tmp_path, case) -> None:
    for sample, path in pairs:
        write(path, np.full(SIZES[sample.image_id][::-1], 255 if case == "all ignored" else 200, np.uint8))
    progress = Heard()
    with pytest.raises(SsrError, match=r"none of \d+ label maps is sound and has a labelled pixel \(--masks FOLDER\)"):
        checked(pairs[: 0 if case == "none" else 4], CLASSES, failures(tmp_path, progress), progress)
    assert len(progress.notes) == (4 if case == "all bad" else 0)


def found_by_mmsegmentation(folder: Path, name: str, files) -> list[tuple[bytes, bytes]]:
    """Photos and label maps that folders, suffixes and the list of names lead to."""
    assert files.names == (folder / f"{name}.txt").resolve()
    assert all(path.is_absolute() for path in (files.names, files.images, files.masks))
    names = files.names.read_text(encoding="utf-8").splitlines()
    return [
        (Path(f"{files.images}/{one}{files.image_suffix}").read_bytes(), Path(f"{files.masks}/{one}.png").read_bytes())
        for one in names
    ]


def contents(pairs: list[tuple[Sample, Path]]) -> list[tuple[bytes, bytes]]:
    return [(sample.image_path.read_bytes(), path.read_bytes()) for sample, path in pairs]


def split(pairs: list[tuple[Sample, Path]], folder: Path):
    return split_files("train", [sample for sample, _ in pairs], [path for _, path in pairs], folder)


def test_a_uniform_dataset_is_used_where_it_lies(pairs, tmp_path) -> None:
    work = tmp_path / "work"
    files = split(pairs[1:], work)  # of a split, not of the whole folder
    assert (files.images, files.masks, files.image_suffix) == (tmp_path / "photos", tmp_path / "masks", ".jpg")
    assert found_by_mmsegmentation(work, "train", files) == contents(pairs[1:])
    assert [path.name for path in work.iterdir()] == ["train.txt"]


def other_suffix(sample: Sample, path: Path) -> tuple[Sample, Path]:
    target = sample.image_path.with_suffix(".png")
    Image.open(sample.image_path).save(target)
    return replace(sample, image_path=target), path


def other_folder(sample: Sample, path: Path) -> tuple[Sample, Path]:
    target = sample.image_path.parent / "more" / sample.image_path.name
    target.parent.mkdir()
    shutil.move(sample.image_path, target)
    return replace(sample, image_path=target), path


def other_name(sample: Sample, path: Path) -> tuple[Sample, Path]:
    target = sample.image_path.with_name("IMG 1.jpg")
    shutil.move(sample.image_path, target)
    return replace(sample, image_path=target), path


def other_mask_folder(sample: Sample, path: Path) -> tuple[Sample, Path]:
    target = path.parent.parent / "more masks" / path.name
    target.parent.mkdir()
    shutil.move(path, target)
    return sample, target


@pytest.mark.parametrize("index", [0, 3])
@pytest.mark.parametrize(
    ("change", "linked"),
    [
        (other_suffix, "train_images"),
        (other_folder, "train_images"),
        (other_name, "train_images"),
        (other_mask_folder, "train_masks"),
    ],
)
def test_a_mixed_dataset_is_linked(pairs, tmp_path, change, linked, index) -> None:
    pairs[index] = change(*pairs[index])
    work = tmp_path / "work"
    files = split(pairs, work)
    assert found_by_mmsegmentation(work, "train", files) == contents(pairs)
    assert {path.name for path in work.iterdir()} == {"train.txt", linked}
    links = list((work / linked).iterdir())
    assert len(links) == len(pairs)
    assert all(path.is_symlink() and path.readlink().is_absolute() for path in links)
    assert split(pairs, work) == files  # once more, over what is there
    fewer = split(pairs[:index] + pairs[index + 1 :] + pairs[index : index + 1], work)
    assert found_by_mmsegmentation(work, "train", fewer) == contents(pairs[:index] + pairs[index + 1 :] + [pairs[index]])


def test_links_follow_the_photos(pairs, tmp_path) -> None:
    work = tmp_path / "work"
    pairs[0] = other_suffix(*pairs[0])
    split(pairs, work)
    (work / "train_images/notes.txt").write_text("not ours")
    (work / "train_images/my photo.jpg").unlink()
    (work / "train_images/my photo.jpg").symlink_to(tmp_path / "nowhere")
    pairs[1] = other_name(*pairs[1])
    pairs.pop()
    assert found_by_mmsegmentation(work, "train", split(pairs, work)) == contents(pairs)
    assert {path.name for path in (work / "train_images").iterdir()} == {"a.jpg", "b.c.jpg", "my photo.jpg", "notes.txt"}
    assert (tmp_path / "photos/d.jpg").is_file()  # the link went, the photo stays


def test_splits_do_not_meet(pairs, tmp_path) -> None:
    pairs = [other_suffix(*pairs[0]), *pairs[1:]]
    train = split(pairs[:2], tmp_path / "work")
    samples, paths = zip(*[pairs[0], pairs[2]], strict=True)
    val = split_files("val", samples, paths, tmp_path / "work")
    assert found_by_mmsegmentation(tmp_path / "work", "train", train) == contents(pairs[:2])
    assert found_by_mmsegmentation(tmp_path / "work", "val", val) == contents([pairs[0], pairs[2]])


NONE = Corrected(Path("nowhere"), frozenset())


@pytest.fixture
def dataset(pairs, tmp_path) -> Dataset:
    samples = tuple(sample for sample, _ in pairs)
    return Dataset("folder", tmp_path, "train", ClassList(CLASSES, CLASSES, ()), samples, tmp_path / "masks")


def test_photos_without_a_pseudo_mask_are_left_out(pairs, dataset, tmp_path) -> None:
    pairs[1][1].unlink()
    write(tmp_path / "masks/of another.png", np.zeros((2, 2), np.uint8))
    assert pseudo_masks(dataset, tmp_path / "masks", False, NONE) == [pairs[0], *pairs[2:]]


def test_corrected_masks_go_before_pseudo_masks(pairs, dataset, tmp_path) -> None:
    """Also where there is no pseudo-mask."""
    pairs[1][1].unlink()
    first, second = (sample.image_id for sample, _ in pairs[:2])
    corrected = Corrected(tmp_path / "corrected", frozenset({first, second}))
    found = pseudo_masks(dataset, tmp_path / "masks", False, corrected)
    own = [(sample, tmp_path / f"corrected/{sample.image_id}.png") for sample, _ in pairs[:2]]
    assert found == [*own, *pairs[2:]]
    assert pseudo_masks(dataset, tmp_path / "nowhere", False, corrected) == own
    assert corrected.said(len(found)) == [
        f"2 corrected masks and {len(found) - 2} pseudo-masks (--no-corrected: pseudo-masks alone)"
    ]


@pytest.mark.parametrize(
    ("asked_for", "hint"), [(True, "--masks FOLDER"), (False, "run `ssr refine` first, or give --masks FOLDER")]
)
@pytest.mark.parametrize(("others", "held"), [(None, "none"), (0, "none"), (2, "2 PNGs of other images")])
def test_no_pseudo_mask(dataset, tmp_path, others, held, asked_for, hint) -> None:
    folder = tmp_path / "elsewhere"
    if others is not None:
        folder.mkdir()
        (folder / "a.txt").touch()
    for index in range(others or 0):
        write(folder / f"other {index}.png", np.zeros((2, 2), np.uint8))
    with pytest.raises(SsrError) as caught:
        pseudo_masks(dataset, folder, asked_for, NONE)
    assert caught.value.message == f"expected pseudo-masks of split train in {folder}, found {held}"
    assert caught.value.hint == hint


def test_ground_truth_is_named_not_opened(pairs, dataset, tmp_path) -> None:
    pairs[0][1].write_text("never read here")
    pairs[1][1].unlink()
    assert ground_truth(dataset, "--supervision") == pairs


@pytest.mark.parametrize("folder", [None, "nowhere"])
def test_no_ground_truth(dataset, tmp_path, folder) -> None:
    without = replace(dataset, mask_folder=folder and tmp_path / folder)
    with pytest.raises(UsageError, match=r"split train has no ground-truth masks \(--val-split\)"):
        ground_truth(without, "--val-split")
