"""The crops of `ssr train`, decoded ahead: the same photos at the same steps, however often the training is stopped."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

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
from pipelines.stores.image_arrays import read_superpixels
from pipelines.training.alignment_data import photo_order
from pipelines.training.crops import crop_map, crop_photo, random_window
from pipelines.training.processes import Processes

Slot = tuple[int, int, int]
"""Step, place in its batch, photo."""


@dataclass(frozen=True)
class CropSource:
    """Makes the crops of every step.

    Attributes:
        dataset: The photos; its masks are opened only with ``options.supervision`` masks.
        options: Crop size, scales, flip, seed, batch.
        encoders: Say what photos are prepared for.
        superpixels: Store, or None if no option asks for them.
    """

    dataset: Dataset
    options: TrainOptions
    encoders: Encoders
    superpixels: ArrayReader | None

    def steps(self, begin: int, processes: Processes) -> Iterator[tuple[int, list[Crop], list[tuple[str, ImageError]]]]:
        """This process's crops of every step from ``begin`` on, without end.

        Yields:
            Step, crops, and the photos that could not be used: no other takes their place.
        """
        share = -(-(self.batch - processes.rank) // processes.count)
        crops: list[Crop] = []
        bad: list[tuple[str, ImageError]] = []
        for count, ((step, _, photo), crop) in enumerate(prefetch(self._crop, self._slots(begin, processes)), start=1):
            if isinstance(crop, ImageError):
                bad.append((self.dataset.samples[photo].image_id, crop))
            else:
                crops.append(crop)
            if count % share == 0:
                yield step, crops, bad
                crops, bad = [], []

    @property
    def batch(self) -> int:
        """Crops a step; all photos, if there are fewer."""
        return min(self.options.batch, len(self.dataset.samples))

    def micro_batches(self, processes: Processes) -> tuple[int, int]:
        """How many micro-batches a step has in each process, ``accumulate`` at most, and the crops of one.

        None is empty from the start, because each counts as one in the mean.
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
        sample, options = self.dataset.samples[index], self.options
        image = load_image(sample.image_path)
        superpixels = self._superpixels(sample, (image.height, image.width))
        target = self._target(sample, (image.height, image.width))
        draw = np.random.default_rng((options.seed, step, place))
        scales = (options.min_scale, options.max_scale)
        window = random_window(image.height, image.width, options.crop, scales, options.flip, draw)
        red, green, blue = (round(255 * value) for value in self.encoders.clip.mean)
        picture = crop_photo(image, window, options.crop, (red, green, blue))
        ids: NDArray[np.integer] | None = None
        if superpixels is not None:  # padding is a superpixel of its own; ids of what is left are made contiguous
            cut = crop_map(superpixels, window, options.crop, int(superpixels.max()) + 1)
            ids = np.unique(cut, return_inverse=True)[1].reshape(cut.shape)
        photo = self.encoders.photo(sample, picture, ids)
        valid = crop_map(np.zeros((image.height, image.width), np.uint8), window, options.crop, 1) == 0
        return Crop(
            place,
            photo,
            torch.from_numpy(np.array(picture)).permute(2, 0, 1).float(),
            torch.from_numpy(valid),
            None if target is None else torch.from_numpy(crop_map(target, window, options.crop, IGNORE_INDEX)).long(),
        )

    def _superpixels(self, sample: Sample, size: tuple[int, int]) -> NDArray[np.integer] | None:
        if self.superpixels is None:
            return None
        if sample.image_id not in self.superpixels:
            raise ImageError("it has no superpixels", "run `ssr superpixels`")
        found = read_superpixels(self.superpixels, sample.image_id)
        if found.shape != size:
            raise ImageError(f"its superpixels are {found.shape}, the photo {size}", "ssr superpixels --force")
        return found

    def _target(self, sample: Sample, size: tuple[int, int]) -> NDArray[np.uint8] | None:
        if self.options.supervision != "masks":
            return None
        path = self.dataset.mask_path(sample.image_id)
        if path is None:
            raise ImageError("it has no ground-truth mask", "--supervision pseudo")
        target = read_mask(path, len(self.dataset.classes.names))
        if target.shape != size:
            raise ImageError(f"its ground truth is {target.shape}, the photo {size} (rows, columns)")
        return target
