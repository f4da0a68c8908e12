"""CVAT for images 1.1: one XML with objects as run lengths in their boxes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from xml.sax.saxutils import escape, quoteattr

from pipelines.exports.base import Add, Format, Item, Plan, text_files
from pipelines.exports.cvat import write_labels
from pipelines.ops.regions import Region, regions
from pipelines.ops.run_lengths import run_lengths


@contextmanager
def write(plan: Plan) -> Iterator[Add]:
    """Write ``annotations.xml``, and ``labels.json`` as `pipelines.exports.cvat` does."""
    with text_files(plan.folder, "annotations.xml") as (file,):
        file.write('<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n<version>1.1</version>\n')
        labels = "".join(f"<label><name>{escape(name)}</name></label>\n" for name in plan.names[1:])
        file.write(f"<meta><task><labels>\n{labels}</labels></task></meta>\n")

        def add(item: Item) -> None:
            height, width = item.label_map.shape
            file.write(f'<image id="{item.number - 1}" name={quoteattr(item.file_name)} width="{width}" height="{height}">\n')
            for region in regions(item.label_map, plan.options.instances):
                file.write(_mask(region, plan.names[region.value]))
            file.write("</image>\n")

        yield add
        file.write("</annotations>\n")
    write_labels(plan)


def _mask(region: Region, name: str) -> str:
    height, width = region.inside.shape
    runs = ", ".join(map(str, run_lengths(region.inside)))
    box = f'left="{region.left}" top="{region.top}" width="{width}" height="{height}"'
    return f'<mask label={quoteattr(name)} source="auto" occluded="0" rle="{runs}" {box} z_order="0"></mask>\n'


FORMAT = Format(write, ("background", "class"), takes=("instances",))
"""See `write`."""
