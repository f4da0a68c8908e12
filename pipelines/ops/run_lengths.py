"""Masks as run lengths: those of CVAT's XML, and Label Studio's brush (thi-ng's rle-pack)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BRUSH_SIZES = (3, 4, 8, 16)
"""Number of bits for a run's length in each of the four codes of a brush."""
_CHANNELS = 4
_HEADER = 32 + 5 + 4 * len(BRUSH_SIZES)


def run_lengths(mask: NDArray[np.bool_]) -> list[int]:
    """Return the lengths of a mask's runs in reading order; the first run is off (length 0 if the first pixel is on)."""
    flat = mask.ravel()
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    lengths = np.diff(np.concatenate([[0], changes, [flat.size]]))
    return [*([0] if flat.size and flat[0] else []), *lengths.tolist()]


def from_run_lengths(lengths: list[int], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the mask of the given run lengths, the inverse of `run_lengths`.

    Args:
        lengths: Lengths of the runs, off and on in turns.
        size: ``(H, W)``.

    Raises:
        ValueError: The lengths do not add up to the size.
    """
    total = size[0] * size[1]
    if any(length < 0 for length in lengths) or sum(lengths) != total:
        raise ValueError(f"expected runs of {total} pixels, found {sum(lengths)}")
    on = np.arange(len(lengths)) % 2 == 1
    return np.repeat(on, lengths).reshape(size)


def encode_brush(mask: NDArray[np.bool_]) -> list[int]:
    """Return a mask as bytes of a Label Studio brush: runs of 0 and 255, each pixel four times (RGBA).

    Args:
        mask: ``(H, W)``.
    """
    whole = np.asarray(run_lengths(mask), dtype=np.int64) * _CHANNELS
    values = np.where(np.arange(len(whole)) % 2 == 1, 255, 0)
    whole, values = whole[whole > 0], values[whole > 0]
    longest = 1 << BRUSH_SIZES[-1]
    pieces = -(-whole // longest)  # a run whose length needs more than 16 bits is written as several
    lengths = np.full(pieces.sum(), longest)  # (R,)
    lengths[np.cumsum(pieces) - 1] = whole - (pieces - 1) * longest
    values = np.repeat(values, pieces)  # (R,)
    kind = np.searchsorted(np.asarray([1 << bits for bits in BRUSH_SIZES]), lengths)  # (R,)
    bits = np.asarray(BRUSH_SIZES)[kind]
    codes = (((((1 << 2) | kind) << bits) | (lengths - 1)) << 8) | values  # 1, code, length - 1, value
    widths = 1 + 2 + bits + 8
    widest = int(widths.max(initial=1))
    places = np.arange(widest)[None, :]
    shifts = widths[:, None] - 1 - places  # (R, widest)
    stream = ((codes[:, None] >> np.maximum(shifts, 0)) & 1)[shifts >= 0]
    return np.packbits(np.concatenate([_header(mask.size * _CHANNELS), stream]).astype(np.uint8)).tolist()


def _header(count: int) -> NDArray[np.int64]:
    fields = [(count, 32), (8 - 1, 5), *((bits - 1, 4) for bits in BRUSH_SIZES)]
    return np.concatenate([(value >> np.arange(width - 1, -1, -1)) & 1 for value, width in fields])


def decode_brush(data: bytes, size: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the pixels of a brush that are not fully transparent.

    Args:
        data: Bytes of the brush.
        size: ``(H, W)``.

    Raises:
        ValueError: The data is no brush, or a brush of another size.
    """
    bits, wanted = np.unpackbits(np.frombuffer(data, np.uint8)), size[0] * size[1] * _CHANNELS
    count, place = _number(bits, 0, 32), 32
    word, place = _number(bits, place, 5) + 1, place + 5
    if count != wanted or word != 8:
        raise ValueError(f"expected a brush of {wanted} bytes, found {count}")
    sizes = [_number(bits, place + 4 * index, 4) + 1 for index in range(len(BRUSH_SIZES))]
    out, filled, place = np.zeros(count, np.uint8), 0, _HEADER
    while filled < count:
        run, width = bool(_number(bits, place, 1)), sizes[_number(bits, place + 1, 2)]
        length = _number(bits, place + 3, width) + 1
        place += 3 + width
        words = 1 if run else length
        if place + 8 * words > len(bits) or filled + length > count:
            raise ValueError("a brush is cut off, or longer than its image")
        out[filled : filled + length] = np.packbits(bits[place : place + 8 * words])
        place, filled = place + 8 * words, filled + length
    return out.reshape(*size, _CHANNELS)[..., 3] > 0


def _number(bits: NDArray[np.uint8], place: int, width: int) -> int:
    if place + width > len(bits):
        raise ValueError("a brush is cut off")
    number = 0
    for bit in bits[place : place + width].tolist():
        number = number << 1 | bit
    return number
