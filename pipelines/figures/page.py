"""One HTML page of many panels: no script, no link outside, pictures inside, so that it can be mailed or kept."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from html import escape

from PIL import Image

from pipelines.figures.page_shell import jpeg_image, page_shell
from pipelines.figures.panel import RGB


@dataclass(frozen=True)
class PageRow:
    """One image of the page.

    Attributes:
        image_id: Also the row's anchor.
        labels: Names of its classes.
        picture: The panel as JPEG or PNG; a PNG is made a JPEG.
        note: One line under the names, e.g. a score.
    """

    image_id: str
    labels: tuple[str, ...]
    picture: bytes
    note: str = ""


def html_page(
    title: str,
    rows: Iterable[PageRow],
    summary: Mapping[str, str],
    colors: Mapping[str, RGB] | None = None,
    sections: Iterable[str] = (),
    first: int = 0,
) -> str:
    """Build the page.

    Args:
        title: Head of the page.
        rows: In order.
        summary: Facts for the head, name -> value.
        colors: Colours of the class names; none, no chip.
        sections: HTML that comes before the panels, made by `pipelines.figures.score_sections`.
        first: Panels that come before the sections.

    Returns:
        HTML. Every text is escaped.

    Raises:
        ValueError: A picture is neither JPEG nor PNG.
    """
    articles = [_article(row, colors or {}) for row in rows]
    count = f"{len(articles):,} image{'s' if len(articles) != 1 else ''}"
    return page_shell(title, summary, [*articles[:first], *sections, *articles[first:]], count=count)


def _article(row: PageRow, colors: Mapping[str, RGB]) -> str:
    name = escape(row.image_id)
    chips = "".join(f"<li>{_chip(colors.get(label))}{escape(label)}</li>" for label in row.labels)
    note = f"<p>{escape(row.note)}</p>" if row.note else ""
    picture = jpeg_image(*_jpeg(row), alt=f"{row.image_id}: {', '.join(row.labels)}")
    return f'<article id="{name}"><header><h2>{name}</h2><ul>{chips}</ul>{note}</header><div>{picture}</div></article>'


def _chip(color: RGB | None) -> str:
    return "" if color is None else '<i style="background:rgb({},{},{})"></i>'.format(*map(int, color))


def _jpeg(row: PageRow) -> tuple[bytes, tuple[int, int]]:
    try:
        with Image.open(io.BytesIO(row.picture), formats=("JPEG", "PNG")) as image:
            if image.format == "JPEG":
                return row.picture, image.size
            out = io.BytesIO()
            image.convert("RGB").save(out, format="JPEG", quality=88, optimize=True)
            return out.getvalue(), image.size
    except OSError as error:
        raise ValueError(f"the picture of {row.image_id} is neither JPEG nor PNG") from error
