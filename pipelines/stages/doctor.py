"""`ssr doctor`: checks everything that a run needs, before hours are spent."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

import torch

from pipelines.datasets import ClassList, Dataset
from pipelines.datasets.check import DatasetReport, PixelReport, check_dataset
from pipelines.datasets.image_files import unread_line
from pipelines.datasets.names import some
from pipelines.datasets.unlabelled import lacks_labels, load_unlabelled
from pipelines.encoders.class_embeddings import text_embeddings
from pipelines.encoders.licences import dino_licence
from pipelines.encoders.similar_words import EQUAL, NEAR, nearest_background, nearest_classes
from pipelines.encoders.super_classes import super_classes
from pipelines.encoders.text import token_counts
from pipelines.encoders.weights import LoadedClip, build_clip, build_dino, resolve_clip, resolve_dino
from pipelines.errors import SsrError
from pipelines.evaluation.plausibility import Plausibility
from pipelines.execution.devices import cpu_multiplies_bf16, precision_name, resolve_device
from pipelines.execution.pool import resolve_workers
from pipelines.method.boundary import crf_installed
from pipelines.options.sources import LONG_SIDE, DatasetOptions, RunOptions
from pipelines.options.stages import RefineOptions
from pipelines.stores.manifest import package_versions
from pipelines.workdir.workspace import Workspace

FEW_PHOTOS = 5
"""Classes with fewer images than this get a warning, because their scores vary by chance."""


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        level: ``ok``, ``warning`` (a run is possible) or ``error`` (it is not).
        topic: ``environment``, ``weights``, ``text`` or ``dataset``.
        message: One line.
    """

    level: Literal["ok", "warning", "error"]
    topic: str
    message: str


def diagnose(workspace: Workspace, refine: RefineOptions, ground_truth: bool = False) -> Iterator[Finding]:
    """Check environment, weights, dataset and text; weights come first, because fetching them may take longest.

    Args:
        workspace: Settings of a run.
        refine: Decides whether DINO and pydensecrf2 are needed.
        ground_truth: Whether ground-truth masks are opened: the sizes of all, the values of some.

    Yields:
        Findings, in the order of the checks.
    """
    yield from _environment(workspace, refine)
    clip: list[LoadedClip] = []
    options = workspace.dataset_options
    yield from _attempt("weights", lambda: _clip(workspace, clip))
    if refine.dino_blocks and refine.dino_weight:
        yield from _attempt("weights", lambda: _dino(workspace))
        if licence := dino_licence(workspace.dino.model):
            yield Finding("warning", "weights", licence)
    try:
        dataset = load_unlabelled(options) if lacks_labels(options) else workspace.dataset
    except SsrError as error:
        yield Finding("error", "dataset", str(error))
        return  # without class names there is no text to check
    yield from _dataset(dataset, options, ground_truth)
    if clip:
        yield from _text(workspace, dataset.classes, clip[0])


def _attempt(topic: str, check: Callable[[], str]) -> Iterator[Finding]:
    try:
        yield Finding("ok", topic, check())
    except SsrError as error:
        yield Finding("error", topic, str(error))


def _environment(workspace: Workspace, refine: RefineOptions) -> Iterator[Finding]:
    yield Finding("ok", "environment", ", ".join(f"{name} {version}" for name, version in package_versions().items()))

    def device() -> str:
        device = resolve_device(workspace.run.device)
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
        workers = resolve_workers(workspace.run.workers)
        return f"device {device} ({name}), {_precision(workspace.run, device)}, {workers} worker processes"

    yield from _attempt("environment", device)
    if crf_installed():
        yield Finding("ok", "environment", "pydensecrf2 is installed: --boundary crf works")
    else:
        level: Literal["warning", "error"] = "error" if refine.boundary == "crf" else "warning"
        missing = (
            "no pydensecrf2: --boundary crf will not work, auto takes par (pip install 'ssr-wsss[crf]'; Python 3.11 or 3.12)"
        )
        yield Finding(level, "environment", missing)
    place = next(path for path in (workspace.work, *workspace.work.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free / 2**30
    yield Finding("ok" if free > 1 else "warning", "environment", f"{free:.0f} GiB free for {workspace.work}")


def _precision(run: RunOptions, device: torch.device) -> str:
    """Return the precision and, on a CPU, the reason for the choice of ``auto``."""
    if run.precision != "auto" or device.type != "cpu":
        return precision_name(run)
    return f"{precision_name(run)} (this CPU has {'' if cpu_multiplies_bf16() else 'no '}bf16 instructions)"


def _dataset(dataset: Dataset, options: DatasetOptions, ground_truth: bool) -> Iterator[Finding]:
    report = check_dataset(dataset, ground_truth, options.long_side)
    labels = sum(report.class_counts.values())
    yield Finding(
        "ok",
        "dataset",
        f"{dataset.kind} {dataset.split}: {report.images} images, {labels / max(1, report.images):.2f} labels an image",
    )
    for words in dataset.understood:
        yield Finding("ok", "dataset", words)
    for words in dataset.passed_over:
        yield Finding("warning", "dataset", words)
    yield from _class_names(dataset.classes.names)
    if lacks_labels(options):
        makes = "`ssr tag` makes a label file from the class names, `ssr predict --model tags` needs none"
        yield Finding("warning", "dataset", f"no label file: {makes}")
    else:
        yield from _labels(report)
    if report.missing:
        yield Finding("error", "dataset", f"{len(report.missing)} image files missing: {some(report.missing)}{report.near}")
    if report.unread:
        line = unread_line(Counter(Path(name).suffix.lower() for name in report.unread))
        yield Finding("error", "dataset", f"{line} ({some(report.unread)})")
    for image_id, reason in report.unreadable[:10]:
        yield Finding("error", "dataset", f"{image_id}: {reason}")
    if report.pixels is not None:
        yield from _pixels(report.pixels)
    if report.missing_masks:
        found = f"{len(report.missing_masks)} images without ground truth: {some(report.missing_masks)}{report.near_mask}"
        yield Finding("warning", "dataset", found)
    for image_id, reason in (*(report.size_mismatches or ())[:10], *(report.bad_masks or ())[:10]):
        yield Finding("error", "dataset", f"{image_id}: {reason}")
    if report.truth is not None:
        yield from _truth(report.truth, dataset)


def _labels(report: DatasetReport) -> Iterator[Finding]:
    """Find classes with few images, and images without a class."""
    few = [f"{name} {count}" for name, count in report.class_counts.items() if 0 < count < FEW_PHOTOS]
    none = [name for name, count in report.class_counts.items() if count == 0]
    if few:
        yield Finding("warning", "dataset", f"classes with fewer than {FEW_PHOTOS} images: {some(few)}")
    if none:
        yield Finding("warning", "dataset", f"classes without any image: {some(none)}")
    if report.unlabelled:
        yield Finding("warning", "dataset", f"{len(report.unlabelled)} images without a class: {some(report.unlabelled)}")


def _class_names(names: tuple[str, ...]) -> Iterator[Finding]:
    """Find class names that may be meant as one, or that are no words."""
    pairs = [
        f"{one} / {near}"
        for index, one in enumerate(names)
        for near in get_close_matches(one, names[:index], n=1, cutoff=0.9)
        if len(one) > 3
    ]
    if pairs:
        yield Finding("warning", "dataset", f"class names that are nearly equal: {some(pairs)}; aliases in --classes join them")
    numbers = [name for name in names if name.isdecimal()]
    if numbers:
        cure = "CLIP reads them as they are: give words by `prompt` in --classes"
        yield Finding("warning", "dataset", f"class names that are numbers: {some(numbers)}; {cure}")


def _pixels(pixels: PixelReport) -> Iterator[Finding]:
    """Find images whose pixels may be read otherwise than they are meant."""
    lines = [
        (
            pixels.turned,
            "images that their EXIF turns, used as they are stored; --orient turns them, if the masks are for that",
        ),
        (pixels.transparent, "images with transparency, which is dropped: what is behind it shows"),
        (pixels.print_colours, "CMYK images, converted without their colour profile: colours may differ; store them as RGB"),
        (pixels.dark, "images of 16 bits with values of 12 bits or fewer, which are nearly black: scale them to 0 to 65535"),
    ]
    for ids, what in lines:
        if ids:
            yield Finding("warning", "dataset", f"{len(ids)} {what}: {some(ids)}")
    if pixels.larger:
        height, width = pixels.longest
        what = (
            f"images have a side above {pixels.long_side} pixels and are encoded at that (--long-side); masks keep their size"
        )
        yield Finding("ok", "dataset", f"{len(pixels.larger)} {what}; the largest is {width} x {height}")
    elif pixels.long_side == 0 and max(pixels.largest) > LONG_SIDE:
        height, width = pixels.largest
        found = f"the largest image, {width} x {height}, has about {height * width // 256:,} patches"
        yield Finding("warning", "dataset", f"{found}: attention needs gigabytes; --long-side {LONG_SIDE} limits it")


def _truth(truth: Plausibility, dataset: Dataset) -> Iterator[Finding]:
    try:
        truth.refuse_binary(f"split {dataset.split}")
    except SsrError as error:
        yield Finding("error", "dataset", str(error))
        return
    for warning in truth.warnings(dataset.classes.names):
        yield Finding("warning", "dataset", f"of {truth.images} masks opened: {warning}")


def _clip(workspace: Workspace, loaded: list[LoadedClip]) -> str:
    clip = build_clip(resolve_clip(workspace.clip.model, workspace.clip.pretrained))
    loaded.append(clip)
    tower = "image and text tower" if clip.has_text else "image tower (class embeddings come from text banks)"
    return f"CLIP {workspace.clip.model} / {clip.weights.pretrained}: {tower}"


def _dino(workspace: Workspace) -> str:
    weights = resolve_dino(workspace.dino.model, workspace.dino.pretrained)
    build_dino(weights)
    return f"DINO {weights.model} / {weights.pretrained}"


def _text(workspace: Workspace, classes: ClassList, clip: LoadedClip) -> Iterator[Finding]:
    try:
        text = text_embeddings(clip, classes, workspace.clip)
    except SsrError as error:
        yield Finding("error", "text", str(error))
        return
    pairs = [nearest_background(text, classes.names), nearest_classes(text, classes.names)]
    background, between = ("none" if pair is None else str(pair) for pair in pairs)
    words = f"{len(text.classes)} classes, {len(text.background)} background words"
    yield Finding("ok", "text", f"{words}; nearest: {background}; nearest classes: {between}")
    for pair in pairs:
        if pair is not None and pair.similarity >= NEAR:
            level: Literal["warning", "error"] = "error" if pair.similarity >= EQUAL else "warning"
            cure = "prompts that differ in more than one word" if pair is pairs[1] else "another background word, or none"
            yield Finding(level, "text", f"CLIP {'cannot' if level == 'error' else 'can hardly'} tell apart {pair}: {cure}")
    yield from _prompts(clip, classes, workspace)
    yield Finding("ok", "text", super_classes(classes, text.classes).described())


def _prompts(clip: LoadedClip, classes: ClassList, workspace: Workspace) -> Iterator[Finding]:
    """Find background words that were left out, and prompts whose end the text tower does not read."""
    for words in classes.notes:
        yield Finding("warning", "text", words)
    if not clip.has_text or workspace.clip.text_bank is not None:
        return
    counts, length = token_counts(clip, classes.prompts, classes.template)
    long = [f"{name} {count}" for name, count in zip(classes.names, counts, strict=False) if count > length]
    if long:
        yield Finding("warning", "text", f"prompts of more than {length} tokens, whose end is not read: {some(long)}")
