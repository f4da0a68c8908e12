"""Pictures of one image on its way: overlays on the photo, panels of them side by side, contact sheets of panels.

Arrays are ``(H, W, 3)`` uint8 RGB unless said. Nothing here reads a file.
"""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from skimage.segmentation import find_boundaries, mark_boundaries

from pipelines.figures.fonts import Font, font_for

RGB = tuple[int, int, int]
_GROUND: RGB = (24, 26, 31)
_INK: RGB = (233, 235, 239)
_GAP = 8


def overlay_mask(
    image: NDArray[np.uint8], label_map: NDArray[np.uint8], palette: NDArray[np.uint8], alpha: float = 0.6
) -> NDArray[np.uint8]:
    """Tint the classes, with their outline in full colour; background stays photo, 255 is hatched white.

    Args:
        image: ``(H, W, 3)`` photo.
        label_map: ``(H, W)`` uint8, 0 = background, 255 = ignore.
        palette: ``(256, 3)`` uint8 RGB.
        alpha: Weight of the class colour in [0, 1].

    Raises:
        ValueError: Photo and label map differ in size.
    """
    _same_size(image, label_map, "label map")
    out = image.astype(np.float32)
    classes = (label_map != 0) & (label_map != 255)
    out[classes] += alpha * (palette[label_map[classes]] - out[classes])
    # Inner outlines, as thick as the picture is large, so that they outlive the panel's scaling.
    outline = classes & find_boundaries(label_map, mode="inner")  # type: ignore[no-untyped-call]
    for _ in range(min(label_map.shape) // 400):
        outline |= classes & _grow(outline)
    out[outline] = palette[label_map[outline]]
    ignored = label_map == 255
    rows, columns = np.nonzero(ignored)
    period = max(6, min(label_map.shape) // 30)
    stripe = (rows + columns) % period < period / 3
    out[ignored] += np.where(stripe, 0.95, 0.35)[:, None] * (255 - out[ignored])
    return _to_uint8(out)


def overlay_cam(image: NDArray[np.uint8], cam: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Lay a CAM over the greyed photo; the stronger the activation, the less photo shows.

    Args:
        image: ``(H, W, 3)`` photo.
        cam: ``(H, W)`` in [0, 1]; what rounding or resizing put outside is clipped.

    Raises:
        ValueError: The sizes differ or the CAM is not finite.
    """
    _same_size(image, cam, "CAM")
    if not np.isfinite(cam).all():
        raise ValueError("the CAM holds values that are not finite")
    strength = np.clip(cam.astype(np.float32), 0, 1)
    color = 255 * mpl.colormaps["turbo"](strength)[..., :3]
    grey = image @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    weight = (0.15 + 0.6 * np.sqrt(strength))[..., None]
    return _to_uint8(grey[..., None] * (1 - weight) + color * weight)


def overlay_superpixels(image: NDArray[np.uint8], superpixels: NDArray[np.integer]) -> NDArray[np.uint8]:
    """Draw the borders of superpixels ``(H, W)`` in yellow.

    Raises:
        ValueError: The sizes differ.
    """
    _same_size(image, superpixels, "superpixels")
    drawn = mark_boundaries(image, superpixels, color=(1, 0.9, 0.1), mode="inner")  # type: ignore[no-untyped-call]
    return _to_uint8(255 * drawn)


def legend(label_map: NDArray[np.uint8], names: Sequence[str], palette: NDArray[np.uint8]) -> list[tuple[str, RGB]]:
    """Name and colour of the classes in a label map, for `panel`.

    Args:
        label_map: ``(H, W)`` uint8.
        names: Names by label-map value, background first. Background is left out, 255 is called "ignore" and white.
        palette: ``(256, 3)`` uint8 RGB.
    """
    entries: list[tuple[str, RGB]] = []
    for value in np.unique(label_map).tolist():
        if value == 255:
            entries.append(("ignore", (255, 255, 255)))
        elif value:
            red, green, blue = palette[value].tolist()
            entries.append((names[value], (red, green, blue)))
    return entries


def panel(
    tiles: Sequence[tuple[str, NDArray[np.uint8]]], height: int = 280, entries: Sequence[tuple[str, RGB]] = ()
) -> Image.Image:
    """Put tiles side by side at one height, titles above, legend below.

    Args:
        tiles: ``(title, (H, W, 3) uint8)``.
        height: Of each tile in pixels; widths follow the aspect, up to four heights.
        entries: Colour chips, e.g. of `legend`; none, no legend.

    Raises:
        ValueError: No tiles.
    """
    if not tiles:
        raise ValueError("a panel needs at least one tile")
    size = max(11, height // 14)
    font = font_for([title for title, _ in tiles] + [name for name, _ in entries], size)
    head = round(1.7 * size)
    pictures = [_fit(tile, height) for _, tile in tiles]
    width = sum(picture.width for picture in pictures) + _GAP * (len(pictures) + 1)
    rows = _legend_rows(entries, font, size, width - 2 * _GAP)
    sheet = Image.new("RGB", (width, head + height + _GAP + head * len(rows)), _GROUND)
    draw = ImageDraw.Draw(sheet)
    left = _GAP
    for (title, _), picture in zip(tiles, pictures, strict=True):
        draw.text((left, head / 2), _shorten(title, font, picture.width), font=font, fill=_INK, anchor="lm")
        sheet.paste(picture, (left, head + (height - picture.height) // 2))
        left += picture.width + _GAP
    for number, row in enumerate(rows):
        middle = head + height + _GAP // 2 + head * number + head / 2
        for offset, name, color in row:
            x = _GAP + offset
            draw.rounded_rectangle((x, middle - size / 2, x + size, middle + size / 2), radius=size / 4, fill=color)
            draw.text((x + 1.4 * size, middle), name, font=font, fill=_INK, anchor="lm")
    return sheet


def contact_sheet(panels: Sequence[Image.Image], columns: int = 1) -> Image.Image:
    """Lay pictures out in a grid, row by row; columns are as wide and rows as high as their largest picture.

    Raises:
        ValueError: No pictures, or ``columns`` < 1.
    """
    if not panels or columns < 1:
        raise ValueError(f"a contact sheet needs pictures and columns, found {len(panels)} and {columns}")
    columns = min(columns, len(panels))
    widths = [max(picture.width for picture in panels[column::columns]) for column in range(columns)]
    rows = [panels[start : start + columns] for start in range(0, len(panels), columns)]
    heights = [max(picture.height for picture in row) for row in rows]
    sheet = Image.new("RGB", (sum(widths) + _GAP * (columns + 1), sum(heights) + _GAP * (len(rows) + 1)), _GROUND)
    top = _GAP
    for row, height in zip(rows, heights, strict=True):
        left = _GAP
        for picture, width in zip(row, widths, strict=False):  # the last row may be short
            sheet.paste(picture, (left, top))
            left += width + _GAP
        top += height + _GAP
    return sheet


def _legend_rows(entries: Sequence[tuple[str, RGB]], font: Font, size: int, width: int) -> list[list[tuple[float, str, RGB]]]:
    """Break a legend into rows of (x offset, name, colour) that fit the width."""
    rows: list[list[tuple[float, str, RGB]]] = []
    offset = float(width)
    for name, color in entries:
        name = _shorten(name, font, width - 2 * size)
        step = 2.6 * size + font.getlength(name)
        if not rows or offset + step - 1.2 * size > width:
            rows.append([])
            offset = 0.0
        rows[-1].append((offset, name, color))
        offset += step
    return rows


def _shorten(text: str, font: Font, width: float) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."


def _fit(tile: NDArray[np.uint8], height: int) -> Image.Image:
    """Scale to the height; a strip wider than four heights is scaled to that width instead."""
    picture = Image.fromarray(tile)
    scale = min(height / picture.height, 4 * height / picture.width)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.LANCZOS)


def _grow(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    grown = mask.copy()
    grown[1:] |= mask[:-1]
    grown[:-1] |= mask[1:]
    grown[:, 1:] |= mask[:, :-1]
    grown[:, :-1] |= mask[:, 1:]
    return grown


def _same_size(image: NDArray[np.uint8], other: NDArray[np.generic], what: str) -> None:
    if image.shape != (*other.shape, 3):
        raise ValueError(f"photo {image.shape} and {what} {other.shape} differ in size")


def _to_uint8(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    rounded: NDArray[np.uint8] = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return rounded
