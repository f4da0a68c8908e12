"""Label Studio: tasks with brushes to correct, and their labelling interface."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from pipelines.exports.base import Add, Format, Item, JsonArray, Plan, text_files
from pipelines.ops.regions import Region, regions
from pipelines.ops.run_lengths import encode_brush

FROM, TO = "brush", "image"
"""Names of the tools, which must agree in the interface and in every result."""
MODEL = "ssr"


@contextmanager
def write(plan: Plan) -> Iterator[Add]:
    """Write ``tasks.json``, with a brush for each object and its confidence as score, and ``interface.xml``."""
    with text_files(plan.folder, "tasks.json", "interface.xml") as (task_file, interface):
        interface.write(_interface(plan))
        tasks = JsonArray(task_file)
        task_file.write("[\n")

        def add(item: Item) -> None:
            results = [
                _result(number, region, item, plan.names[region.value])
                for number, region in enumerate(regions(item.label_map, plan.options.instances))
            ]
            prediction: dict[str, Any] = {"model_version": MODEL, "result": results}
            if item.confidence is not None:
                prediction["score"] = item.confidence
            tasks.add({"data": {"image": _address(plan, item), "image_id": item.image_id}, "predictions": [prediction]})

        yield add
        task_file.write("\n]\n")
    plan.said.append(f"paste {plan.place / 'interface.xml'} into the project's labelling interface, then import tasks.json")
    if not plan.options.image_url:
        plan.said += [
            "start Label Studio with these two lines, and add a local storage of the image folder to the project:",
            "export LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true",
            f"export LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT={shlex.quote(str(plan.photo_root.parent))}",
        ]


def _address(plan: Plan, item: Item) -> str:
    url, photo = plan.options.image_url, item.photo.absolute()
    start, root = (url, plan.photo_root) if url else ("/data/local-files/?d=", plan.photo_root.parent)
    return start + quote(photo.relative_to(root).as_posix())


def _result(number: int, region: Region, item: Item, name: str) -> dict[str, Any]:
    height, width = item.label_map.shape
    return {
        "id": f"{item.number}-{number}",
        "type": "brushlabels",
        "from_name": FROM,
        "to_name": TO,
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "value": {"format": "rle", "rle": encode_brush(region.full((height, width))), "brushlabels": [name]},
    }


def _interface(plan: Plan) -> str:
    labels = "".join(f'    <Label value={quoteattr(name)} background="{colour}"/>\n' for name, colour in plan.labels)
    return (
        f'<View>\n  <Image name="{TO}" value="$image" zoom="true" zoomControl="true"/>\n'
        f'  <BrushLabels name="{FROM}" toName="{TO}">\n{labels}  </BrushLabels>\n</View>\n'
    )


FORMAT = Format(write, ("background", "class"), takes=("instances", "image_url"), confidence=True)
"""See `write`."""
