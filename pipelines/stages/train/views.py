"""Fixed views of images, stored as tokens of the frozen encoders with their labels: a step on them runs the decoder alone.

A view is one random crop. Its tokens are ``L N D`` fp16 values, 7.4 MB for 12 blocks of a ViT-B/16 and a crop of 320 pixels.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipelines.datasets.base import Sample
from pipelines.encoders.class_embeddings import TextEmbeddings
from pipelines.errors import ImageError, SsrError, UsageError
from pipelines.execution.batches import batches_by
from pipelines.execution.devices import resolve_batch_size
from pipelines.execution.progress import Progress
from pipelines.method.photo import Crop
from pipelines.ops.label_map import IGNORE_INDEX
from pipelines.stages.train.crops import BadPhotos, Slot
from pipelines.stages.train.inputs import TrainInputs
from pipelines.stages.train.settings import TrainSections, super_map_settings, view_settings
from pipelines.stores.array_reader import files_of
from pipelines.stores.array_store import ArrayReader, store_exists
from pipelines.training.alignment_data import steps_an_epoch
from pipelines.training.losses import Targets, needs_super_maps
from pipelines.training.processes import Processes
from pipelines.training.segmentation import SegmentationTrainer
from pipelines.workdir.counts import Counts
from pipelines.workdir.output import Output, Part, holds_labels
from pipelines.workdir.workspace import Workspace

STAGE = "views"
GB = 10**9
WHILE_WRITTEN = 2
"""Disk space that the views need while they are written, as a multiple of their size: the parts, then the one file of all."""


@dataclass(frozen=True)
class KeptView:
    """One stored view.

    Attributes:
        slot: Place in the batch of all processes.
        tokens: Output of CLIP's first blocks, ``(L, N, D)`` fp16.
        labels: ``(S, S)`` uint8: 0 background, ``i + 1`` for class i, 255 ignored.
        super_maps: ``(S', N)`` fp16, see `pipelines.training.losses.Targets`; None if no loss needs them.
    """

    slot: int
    tokens: Tensor
    labels: Tensor
    super_maps: Tensor | None = None


@dataclass(frozen=True)
class Views:
    """The views of a training, which are made once and read at every step.

    Attributes:
        workspace: Names the images, superpixels and work directory.
        sections: Checked options.
    """

    workspace: Workspace
    sections: TrainSections

    @property
    def tokens_path(self) -> Path:
        """Store of the views' tokens, ``(L, N, D)`` fp16 each."""
        return self.workspace.work / "train" / "views.h5"

    @property
    def labels_path(self) -> Path:
        """Store of the views' label maps, ``(S, S)`` uint8 each."""
        return self.workspace.work / "train" / "view_labels.h5"

    @property
    def supers_path(self) -> Path:
        """Store of the views' super-class maps, ``(S', N)`` fp16 each; it exists if a loss needs them."""
        return self.workspace.work / "train" / "view_supers.h5"

    @property
    def paths(self) -> tuple[Path, ...]:
        """The stores that the training reads."""
        return self.tokens_path, self.labels_path, *((self.supers_path,) if needs_super_maps(self.sections.train) else ())

    def collect(self, load: Callable[[], TrainInputs], progress: Progress) -> Counts:
        """Encode and label every view that is not stored.

        Args:
            load: Loads the encoders and what makes labels; not called if every view is stored.
            progress: Receives each image.

        Raises:
            UsageError: Views were made with other options and ``workspace.force`` is off, or they are larger than
                ``cache_limit``.
            SsrError: The views do not fit on the disk.
            TooManyFailures: There are more bad images than allowed; what was made is kept.
        """

        @cache
        def inputs() -> TrainInputs:
            loaded = load()
            self._check_space(loaded, progress)
            return loaded

        settings, others = view_settings(self.workspace, self.sections), (self.labels_path,)
        supers = super_map_settings(self.workspace, self.sections)  # empty where no loss needs the maps
        then = [Part(STAGE, self.supers_path, settings | {"super_maps": supers})] if supers else []
        with self.workspace.output(
            STAGE, self.tokens_path, settings, progress, others=others, then=then, again=False, prepare=inputs
        ) as output:
            todo = output.todo(lambda sample: not self._missing(output, sample), title="train: views")
            if todo:
                loaded = inputs()
                photos = output.photos(lambda sample: loaded.source.views(sample, self._missing(output, sample)), todo)
                crops = ((crop, number == len(views)) for views in photos for number, crop in enumerate(views, start=1))
                size = resolve_batch_size(self.workspace.run, loaded.encoders.clip.device)
                for batch in batches_by(crops, lambda crop: len(crop[0].image), size):
                    self._add(output, loaded, [crop for crop, _ in batch])
                    for crop, last in batch:
                        if last:
                            output.made(crop.photo.sample.image_id)
        return output.counts

    def _missing(self, output: Output, sample: Sample) -> list[int]:
        """Return the views of an image that are not stored, or were labelled from other image-level labels."""
        count = self.sections.train.cache_views
        return [view for view in range(count) if not output.holds_labels(view_of(sample, view))]

    def _add(self, output: Output, inputs: TrainInputs, crops: Sequence[Crop]) -> None:
        """Encode a batch of views, label them, and write both."""
        evidence = inputs.encoders.encode([crop.photo for crop in crops])
        if inputs.labels is not None:
            targets = inputs.labels(crops, evidence)
        else:
            targets = Targets(torch.stack([crop.target for crop in crops if crop.target is not None]))
        tokens = evidence.clip_block_tokens.transpose(0, 1).half().cpu()  # (B, L, N, D)
        if not bool(torch.isfinite(tokens).all()):
            raise SsrError("CLIP's tokens are larger than 16 bits can hold", "--cache-views 0")
        arrays = {self.labels_path: targets.labels.cpu().numpy().astype(np.uint8)}  # (B, S, S)
        if targets.super_maps is not None:
            arrays[self.supers_path] = targets.super_maps.half().cpu().numpy()  # (B, S', N)
        for number, crop in enumerate(crops):
            view = view_of(crop.photo.sample, crop.slot)
            attributes = {"labels": list(view.labels), "photo": view.photo}
            committed = output.writer_of(self.tokens_path).add(
                view.image_id, tokens[number].numpy(), attributes, compressed=False
            )
            for path, array in arrays.items():
                output.writer_of(path).add(view.image_id, array[number], attributes)
                if committed:  # otherwise tokens without labels would be made again
                    output.writer_of(path).commit()

    def _check_space(self, inputs: TrainInputs, progress: Progress) -> None:
        """Report the size of all views; refuse more than the limit or the disk allows."""
        options, photos = self.sections.train, len(self.workspace.dataset.samples)
        size = photos * options.cache_views * 2 * int(np.prod(view_shape(inputs)))
        what = f"{options.cache_views} views of {photos} images take {_gigabytes(size)}"
        if size > options.cache_limit * GB:
            hint = "--cache-limit, or less of --cache-views or --crop"
            raise UsageError(f"{what}, more than the {options.cache_limit:g} GB allowed", hint)
        here = next(folder for folder in (self.tokens_path.parent, *self.tokens_path.parents) if folder.is_dir())
        room = shutil.disk_usage(here).free + sum(file.stat().st_size for file in files_of(self.tokens_path))
        if WHILE_WRITTEN * size > room:
            found = f"{what} and twice that while they are written; {_gigabytes(room)} are free"
            raise SsrError(found, "free disk space, or less of --cache-views")
        progress.note(f"{what} in {self.tokens_path}")

    def steps(self, inputs: TrainInputs, begin: int, processes: Processes) -> Iterator[tuple[int, list[KeptView], BadPhotos]]:
        """Yield this process's views of every step from ``begin`` on, without end; epoch e has view e modulo their number.

        Raises:
            SsrError: There are no views.
        """
        if not all(store_exists(path) for path in self.paths):
            raise SsrError("none of the images could be used: there is nothing to train on", "see failures.jsonl")
        with ExitStack() as stack:
            readers = tuple(stack.enter_context(ArrayReader(path)) for path in self.paths)
            yield from inputs.source.made(_Read(self, inputs, readers), begin, processes)


@dataclass(frozen=True)
class _Read:
    """A reader of the view of a slot."""

    views: Views
    inputs: TrainInputs
    readers: tuple[ArrayReader, ...]

    def __call__(self, slot: Slot) -> KeptView:
        step, place, index = slot
        samples, options = self.inputs.source.dataset.samples, self.views.sections.train
        epoch = step // steps_an_epoch(len(samples), options.batch)
        view = view_of(samples[index], epoch % options.cache_views)
        if not holds_labels(view, *self.readers):
            raise ImageError("it has no cached views", "see failures.jsonl")
        tokens, labels, *supers = (reader.read(view.image_id)[0] for reader in self.readers)
        classes, shape = len(self.inputs.source.dataset.classes.names), view_shape(self.inputs)
        sound = tokens.shape == shape and tokens.dtype == np.float16 and labels.dtype == np.uint8
        sound &= all(maps.shape[1:] == shape[1:2] and maps.dtype == np.float16 for maps in supers)
        if not sound or labels.shape != (options.crop,) * 2 or int(labels[labels != IGNORE_INDEX].max(initial=0)) > classes:
            where = " or ".join(str(reader.path) for reader in self.readers)
            raise SsrError(f"{view.image_id} in {where} is no view of this training", "remove them and run `ssr train` again")
        return KeptView(place, *(torch.from_numpy(array) for array in (tokens, labels, *supers)))


def learn_views(
    trainer: SegmentationTrainer, views: Sequence[KeptView], patch: int, text: TextEmbeddings | None = None
) -> None:
    """Run the forward pass and the gradient of one micro-batch of views.

    Args:
        trainer: Trainer of the decoder.
        views: The micro-batch.
        patch: Side of CLIP's patch, pixels.
        text: Text with the super-class of each class; None if no loss needs super-class maps.
    """
    tokens = torch.stack([view.tokens for view in views], dim=1).to(trainer.device)  # (L, B, N, D)
    labels = torch.stack([view.labels for view in views]).to(trainer.device, torch.int64)  # (B, S, S)
    state = trainer.forward(tokens, (labels.shape[1] // patch, labels.shape[2] // patch), [view.slot for view in views])
    maps = [view.super_maps for view in views if view.super_maps is not None]  # (S', N) each
    targets = Targets(labels)
    if maps and text is not None:
        of_class = torch.tensor(text.super_of_class, device=trainer.device)  # (C,)
        targets = replace(targets, super_maps=torch.stack(maps).to(trainer.device).float(), super_of_class=of_class)
    trainer.backward(state, targets)


def view_of(sample: Sample, view: int) -> Sample:
    """Return a view's entry in the stores, whose name is unique among all views."""
    return replace(sample, image_id=f"{sample.image_id}.{view}")


def view_shape(inputs: TrainInputs) -> tuple[int, int, int]:
    """Return the shape ``(L, N, D)`` of a view's tokens."""
    clip, source = inputs.encoders.clip, inputs.source
    return inputs.encoders.blocks.clip_tokens, (source.options.crop // clip.patch_size) ** 2, clip.width


def _gigabytes(size: int) -> str:
    return f"{size / GB:.1f} GB" if size >= GB // 10 else f"{size / 10**6:.2g} MB"
