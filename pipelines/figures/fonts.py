"""A font that has the letters of the class names: Pillow's own has Latin ones alone."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

from PIL import ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_LATIN = 0x180
"""Letters below this are in Pillow's own font."""


def font_for(texts: Iterable[str], size: int) -> Font:
    """A font for some texts: Pillow's own, or else the installed one that lacks the fewest of their letters.

    Args:
        texts: All that is drawn with it.
        size: In pixels.
    """
    path, _ = _best(_foreign(texts))
    return ImageFont.load_default(size) if path is None else ImageFont.truetype(path, size)


def letters_without_font(texts: Iterable[str]) -> str:
    """The letters that `font_for` draws as boxes, because no installed font has them all; empty if there are none."""
    return _best(_foreign(texts))[1]


def _foreign(texts: Iterable[str]) -> str:
    return "".join(sorted({letter for text in texts for letter in text if ord(letter) >= _LATIN and not letter.isspace()}))


@cache
def _best(letters: str) -> tuple[str | None, str]:
    """Path of the font and the letters that it lacks; None for Pillow's own."""
    if not letters:
        return None, ""
    from matplotlib.font_manager import fontManager  # here: it looks through the machine's fonts
    from matplotlib.ft2font import FT2Font

    best: tuple[str | None, str] = (None, letters)
    fonts = sorted(fontManager.ttflist, key=lambda font: (font.style != "normal", font.weight != 400, font.name))
    for path in dict.fromkeys(font.fname for font in fonts if "Last Resort" not in font.name):  # that one draws boxes
        try:
            known = FT2Font(path).get_charmap()
        except (OSError, RuntimeError):  # removed since the fonts were listed, or damaged
            continue
        lacking = "".join(letter for letter in letters if ord(letter) not in known)
        if len(lacking) < len(best[1]):
            best = path, lacking
        if not lacking:
            break
    return best
