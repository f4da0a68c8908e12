"""A fixed share of a list of images."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from functools import cached_property

from pipelines.datasets.base import Sample
from pipelines.datasets.label_stream import LabelStream
from pipelines.stores.shard import Shard


class Share(Collection[Sample]):
    """The images of a list that belong to one shard, in the order of the list, without a copy.

    Args:
        samples: The whole list.
        shard: The shard.
    """

    def __init__(self, samples: Collection[Sample], shard: Shard) -> None:
        self._samples = samples
        self._shard = shard

    def __iter__(self) -> Iterator[Sample]:
        if isinstance(self._samples, LabelStream):
            return self._samples.share(self._shard)
        return (sample for sample in self._samples if self._shard.holds(sample.image_id))

    def __len__(self) -> int:
        return self._count

    def __contains__(self, sample: object) -> bool:
        return isinstance(sample, Sample) and self._shard.holds(sample.image_id) and sample in self._samples

    @cached_property
    def _count(self) -> int:
        if isinstance(self._samples, LabelStream):
            return self._samples.count_of(self._shard)
        return sum(1 for _ in self)
