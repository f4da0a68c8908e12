"""The crops of `ssr train`, decoded in advance. Each step has the same images, however often the training is stopped."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from pipelines.datasets.base import Dataset, Sample
from pipelines.datasets.image import load_image
from pipelines.errors import ImageError
from pipelines.evaluation.ground_truth import read_mask
from pipelines.execution.pool import prefetch
from pipelines.method.encoders import Encoders
from pipelines.method.photo import Crop
from pipelines.ops.label_map import IGNORE_INDEX
from pipelines.options.train import TrainOptions
from pipelines.stores.array_store import ArrayReader
from pipelines.stores.image_arrays import superpixels_of
from pipelines.training.alignment_data import photo_order
from pipelines.training.crops import crop_map, crop_photo, random_window
from pipelines.training.processes import Processes
from pipelines.workdir.corrected import Corrected
from pipelines.workdir.photos import seen

Item = TypeVar("Item")
Slot = tuple[int, int, int]
"""Step, place in the batch of the step, and image."""

BadPhotos = list[tuple[str, ImageError]]
"""Ids of images that could not be used, with their errors."""


@dataclass(frozen=True)
class CropSource:
    """A maker of the crops of every step.

    Attributes:
        dataset: The images; masks are opened only if ``options.supervision`` is ``masks``.
        options: Crop size, scales, flip, seed, batch.
        encoders: Encoders, which resize the crops for their needs.
        superpixels: Store of superpixels, or None if no option needs them.
        corrected: Images with a corrected mask, used if ``options.supervision`` is ``pseudo``.
    """

    dataset: Dataset
    options: TrainOptions
    encoders: Encoders
    superpixels: ArrayReader | None
    corrected: Corrected

    def steps(self, begin: int, processes: Processes) -> Iterator[tuple[int, list[Crop], BadPhotos]]:
        """Yield this process's crops of every step from ``begin`` on, without end; see `made`."""
        return self.made(self._crop, begin, processes)

    def made(
        self, make: Callable[[Slot], Item], begin: int, processes: Processes
    ) -> Iterator[tuple[int, list[Item], BadPhotos]]:
        """Yield a value for each slot of this process, made in advance in threads, from step ``begin`` on, without end.

        Yields:
            Step, values, and the images that could not be used, which are not replaced by others.
        """
        share = -(-(self.batch - processes.rank) // processes.count)
        items: list[Item] = []
        bad: BadPhotos = []
        for count, ((step, _, photo), item) in enumerate(prefetch(make, self._slots(begin, processes)), start=1):
            if isinstance(item, ImageError):
                bad.append((self.dataset.samples[photo].image_id, item))
            else:
                items.append(item)
            if count % share == 0:
                yield step, items, bad
                items, bad = [], []

    @property
    def batch(self) -> int:
        """Crops per step; the number of images, if it is smaller."""
        return min(self.options.batch, len(self.dataset.samples))

    def micro_batches(self, processes: Processes) -> tuple[int, int]:
        """Return the number of micro-batches of a step, ``accumulate`` at most, and the number of crops of each.

        A step has no more micro-batches than its crops fill, because an empty one counts as one in the mean.
        """
        share = -(-self.batch // processes.count)
        size = -(-share // self.options.accumulate)
        return -(-share // size), size

    def _slots(self, begin: int, processes: Processes) -> Iterator[Slot]:
        order = photo_order(len(self.dataset.samples), self.options.batch, self.options.seed)
        for step, photos in enumerate(islice(order, begin, None), start=begin):
            for place in range(processes.rank, len(photos), processes.count):
                yield step, place, photos[place]

    def _crop(self, slot: Slot) -> Crop:
        step, place, index = slot
        return self._decoded(self.dataset.samples[index])(np.random.default_rng((self.options.seed, step, place)), place)

    def views(self, sample: Sample, numbers: Sequence[int]) -> list[Crop]:
        """Make fixed crops of an image, each drawn from the seed, the image's id and its own number alone.

        Raises:
            ImageError: The image cannot be used.
        """
        cut, of_photo = self._decoded(seen(sample)), zlib.crc32(sample.image_id.encode())
        return [cut(np.random.default_rng((self.options.seed, of_photo, number)), number) for number in numbers]

    def _decoded(self, sample: Sample) -> Callable[[np.random.Generator, int], Crop]:
        """Read an image once, and return a function that cuts crops out of it."""
        options, image = self.options, load_image(sample.image_path, sample.orient)
        height, width = image.height, image.width
        superpixels, target = self._superpixels(sample, (height, width)), self._target(sample, (height, width))
        red, green, blue = (round(255 * value) for value in self.encoders.clip.mean)

        def cut(draw: np.random.Generator, slot: int) -> Crop:
            scales = (options.min_scale, options.max_scale)
            window = random_window(height, width, options.crop, scales, options.flip, draw)
            picture = crop_photo(image, window, options.crop, (red, green, blue))
            ids: NDArray[np.integer] | None = None
            if superpixels is not None:  # padding is one further superpixel; the remaining ids are made contiguous
                part = crop_map(superpixels, window, options.crop, int(superpixels.max()) + 1)
                ids = np.unique(part, return_inverse=True)[1].reshape(part.shape)
            valid = crop_map(np.zeros((height, width), np.uint8), window, options.crop, 1) == 0
            return Crop(
                slot,
                self.encoders.photo(sample, picture, ids),
                torch.from_numpy(np.array(picture)).permute(2, 0, 1).float(),
                torch.from_numpy(valid),
                None if target is None else torch.from_numpy(crop_map(target, window, options.crop, IGNORE_INDEX)).long(),
            )

        return cut

    def _superpixels(self, sample: Sample, size: tuple[int, int]) -> NDArray[np.integer] | None:
        found = superpixels_of(self.superpixels, sample.image_id, sample.photo)
        if found is not None and found.shape != size:
            raise ImageError(f"its superpixels are {found.shape}, the image {size}", "ssr superpixels --force")
        return found

    def _target(self, sample: Sample, size: tuple[int, int]) -> NDArray[np.uint8] | None:
        truth = self.options.supervision == "masks"
        path = self.dataset.mask_path(sample.image_id) if truth else self.corrected.path(sample.image_id)
        if path is None and not truth:
            return None
        if path is None:
            raise ImageError("it has no ground-truth mask", "--supervision pseudo")
        target = read_mask(path, len(self.dataset.classes.names))
        if target.shape != size:
            what = "ground truth" if truth else "corrected mask"
            raise ImageError(f"its {what} is {target.shape}, the image {size} (rows, columns)")
        return target
