"""`ssr sample`: draws the embedded set in VOC's layout, with a config that runs every stage on it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path

import numpy as np
from PIL import Image

from pipelines.datasets.classes import load_class_list, palette
from pipelines.datasets.label_files import read_label_file, write_label_file
from pipelines.errors import ImageError, UsageError
from pipelines.execution.pool import map_bounded, process_pool, resolve_workers
from pipelines.execution.progress import Progress, Silent
from pipelines.options.stages import SampleOptions
from pipelines.sample.picture import CLASSES, draw_picture
from pipelines.sample.scenes import SCENES
from pipelines.stores.files import atomic_path, read_json, remove_leftovers, write_json
from pipelines.stores.manifest import differences
from pipelines.stores.mask_store import write_mask
from pipelines.workdir.counts import Counts

STAGE = "sample"

CONFIG = "sample.toml"
"""The config that is written beside the dataset."""

SIDES = (160, 256)
"""Shortest and longest side in pixels."""


@dataclass(frozen=True)
class _Job:
    image_id: str
    number: int


def models_folder() -> Path:
    """Return the folder of the embedded CLIP and DINO."""
    return Path(str(resources.files("pipelines.sample"))) / "models"


def run(work: Path, options: SampleOptions, force: bool = False, progress: Progress | None = None) -> Counts:
    """Write splits and class list, draw the images that are missing, then write labels and config.

    Args:
        work: Folder of ``dataset/`` (VOC's layout) and ``sample.toml``.
        options: Numbers of images, and the seed.
        force: Whether all images are drawn again.
        progress: Receives each image.

    Returns:
        Images done and skipped.

    Raises:
        UsageError: There is another drawn set in ``work``, and ``force`` is off.
    """
    progress = progress or Silent()
    root, settings = work / "dataset", options.model_dump(mode="json")
    _settle(root / "sample.json", settings, force)
    jobs = [_Job(f"train_{index:04d}", index) for index in range(options.train)]
    jobs += [_Job(f"val_{index:04d}", 500_000 + index) for index in range(options.val)]
    _clean(root, {job.image_id for job in jobs})
    _write_lists(root, jobs)
    classes, table = load_class_list(root / "classes.toml"), root / "labels.csv"
    labels = read_label_file(table, classes) if table.is_file() and not force else {}  # written last: a kill leaves none
    todo = [job for job in jobs if job.image_id not in labels or not all(path.is_file() for path in _paths(root, job.image_id))]
    counts = Counts(skipped=len(jobs) - len(todo))
    progress.start(STAGE, len(jobs), counts.skipped)
    workers = min(resolve_workers(0), max(1, len(todo)))
    with process_pool(workers) as pool:
        for job, present in map_bounded(pool, partial(_draw, root=root, seed=options.seed), todo, ahead=4 * workers):
            if isinstance(present, ImageError):
                raise present
            labels[job.image_id] = present
            counts.done += 1
            progress.advance()
    progress.finish()
    write_label_file(table, {job.image_id: labels[job.image_id] for job in jobs}, classes)
    _write_text(work / CONFIG, _config())
    return counts


def _settle(path: Path, settings: dict[str, int], force: bool) -> None:
    previous = read_json(path) if path.is_file() else settings
    changed = differences(previous, settings)
    if changed and not force:
        raise UsageError(f"{path.parent} is another drawn set ({'; '.join(changed)})", "--force draws it again, or --work")
    write_json(path, settings)


def _paths(root: Path, image_id: str) -> tuple[Path, Path]:
    """Return the paths of an image and its mask."""
    return root / "JPEGImages" / f"{image_id}.jpg", root / "SegmentationClass" / f"{image_id}.png"


def _clean(root: Path, wanted: set[str]) -> None:
    """Remove leftovers of a killed run or of a larger set."""
    for folder in (root / "JPEGImages", root / "SegmentationClass"):
        remove_leftovers(folder)
        for path in folder.glob("*"):
            if path.stem not in wanted:
                path.unlink()


def _draw(job: _Job, root: Path, seed: int) -> tuple[int, ...]:
    """Draw one image with its mask, and return its labels."""
    rng = np.random.default_rng([seed, job.number])
    long, short = SIDES[1], int(rng.integers(SIDES[0], SIDES[1] + 1))
    height, width = (short, long) if rng.random() < 0.7 else (long, short)
    picture = draw_picture(rng, height, width)
    image_path, mask_path = _paths(root, job.image_id)
    with atomic_path(image_path) as temporary:
        Image.fromarray(picture.image).save(temporary, format="JPEG", quality=95)
    write_mask(mask_path, picture.mask, palette())
    return picture.labels


def _write_lists(root: Path, jobs: list[_Job]) -> None:
    for split in ("train", "val"):
        ids = (job.image_id for job in jobs if job.image_id.startswith(split))
        _write_text(root / "ImageSets" / "Segmentation" / f"{split}.txt", "\n".join(ids) + "\n")
    _write_text(root / "classes.toml", _class_list() + "\n")


def _write_text(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _class_list() -> str:
    words = [word for _, word, _ in SCENES.values()]
    words += sorted({name for _, _, clutter in SCENES.values() for name in clutter})
    background = ", ".join(f'"{word}"' for word in words)
    classes = "\n".join(f'  {{ name = "{name}" }},' for name in CLASSES)
    return f'template = "{{}}"\nbackground = [{background}]\nclasses = [\n{classes}\n]'


def _config() -> str:
    models = models_folder().as_posix()
    recipe = (resources.files("pipelines.sample") / "sample.toml").read_text(encoding="utf-8")
    return recipe.replace("{models}", models)
