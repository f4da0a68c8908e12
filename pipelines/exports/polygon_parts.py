"""Regions as polygons for formats without holes, and the number of pixels that this changes."""

from __future__ import annotations

from pipelines.errors import ImageError
from pipelines.exports.base import Item, Plan
from pipelines.ops.polygons import Ring, outlines, ring_area, simplified, with_holes
from pipelines.ops.regions import Region


class PolygonParts:
    """Converter of regions to the polygons of an export.

    Args:
        plan: Plan whose options set how holes are written and how far outlines may move.

    Attributes:
        plan: As given.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._pixels, self._changed, self._holes = 0, 0.0, 0

    def of(self, region: Region, item: Item) -> list[Ring]:
        """Return one ring for each part of the region, in pixels of the image.

        Raises:
            ImageError: A part has a hole, and holes are refused.
        """
        options, corner = self.plan.options, (region.left, region.top)
        rings: list[Ring] = []
        for part in outlines(region.inside):
            outer, *holes = part
            self._holes += len(holes)
            if holes and options.holes == "refuse":
                name = self.plan.names[region.value]
                raise ImageError(f"an object of class {name!r:.80} has a hole, which this format cannot hold", "--holes bridge")
            kept = [outer, *holes] if options.holes == "bridge" else [outer]
            ring = with_holes([simplified(ring, options.simplify) for ring in kept])
            pixels = ring_area(outer) - sum(map(ring_area, holes))
            self._pixels += round(pixels)
            self._changed += abs(ring_area(ring) - pixels)
            rings.append(ring + corner)
        return rings

    def say(self) -> None:
        """Add a message on the holes and on the change in area."""
        if not self._pixels:
            return
        done = {"bridge": "cut in by lines of no width", "fill": "filled", "refuse": "refused"}[self.plan.options.holes]
        self.plan.said.append(
            f"{self._holes} holes {done}; areas of polygons differ by {self._changed / self._pixels:.2%} from the pixels"
        )
