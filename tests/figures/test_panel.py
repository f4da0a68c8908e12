from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipelines.figures.fonts import font_for, letters_without_font
from pipelines.figures.panel import contact_sheet, legend, overlay_cam, overlay_mask, overlay_superpixels, panel

PALETTE = np.random.default_rng(7).integers(0, 256, (256, 3), dtype=np.uint8)
GROUND = (24, 26, 31)


def photo(height: int = 40, width: int = 60, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_overlay_mask_blends_inside_and_outlines(alpha: float) -> None:
    image = photo()
    label_map = np.zeros((40, 60), np.uint8)
    label_map[10:30, 20:50] = 5
    before = image.copy()
    out = overlay_mask(image, label_map, PALETTE, alpha)
    np.testing.assert_array_equal(out[label_map == 0], image[label_map == 0])
    inside = (slice(11, 29), slice(21, 49))
    expected = (1 - alpha) * image[inside].astype(float) + alpha * PALETTE[5]
    np.testing.assert_allclose(out[inside], expected, atol=0.51)
    for edge in (out[10, 20:50], out[29, 20:50], out[10:30, 20], out[10:30, 49]):
        assert (edge == PALETTE[5]).all()
    np.testing.assert_array_equal(image, before)


def test_overlay_mask_hatches_ignore_in_white() -> None:
    out = overlay_mask(np.zeros((40, 60, 3), np.uint8), np.full((40, 60), 255, np.uint8), PALETTE)
    assert sorted(np.unique(out)) == [89, 242]  # .35 and .95 of white
    assert (out[0] != out[0, 0]).any()


def test_overlay_mask_outlines_two_touching_classes() -> None:
    label_map = np.repeat(np.array([[3] * 30 + [9] * 30], np.uint8), 40, axis=0)
    out = overlay_mask(photo(), label_map, PALETTE)
    assert (out[:, 29] == PALETTE[3]).all()
    assert (out[:, 30] == PALETTE[9]).all()


def test_overlay_cam_follows_the_activation() -> None:
    image = np.full((4, 3, 3), 128, np.uint8)
    cam = np.array([[0, 0.5, 1]] * 4, np.float16)
    out = overlay_cam(image, cam).astype(int)
    change = np.abs(out - 128).sum(axis=2)[0]
    assert change[0] < change[1]
    assert out[0, 2, 0] > out[0, 2, 2]  # hot is red
    assert out[0, 0, 0] < out[0, 0, 2]  # cold is blue
    np.testing.assert_array_equal(overlay_cam(image, cam * 1.0 + np.array([-0.1, 0, 0.1])), overlay_cam(image, cam))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_overlay_cam_refuses_what_is_not_finite(value: float) -> None:
    with pytest.raises(ValueError, match="not finite"):
        overlay_cam(photo(2, 2), np.array([[0, 1], [value, 0]]))


def test_overlay_superpixels_draws_borders_only() -> None:
    superpixels = np.repeat(np.array([[0] * 30 + [1] * 30]), 40, axis=0)
    image = photo()
    out = overlay_superpixels(image, superpixels)
    changed = (out != image).any(axis=2)
    assert changed[:, 29:31].any(axis=1).all()
    assert not changed[:, :29].any()
    assert not changed[:, 31:].any()


@pytest.mark.parametrize(
    ("overlay", "argument"),
    [
        (lambda image, other: overlay_mask(image, other, PALETTE), np.zeros((60, 40), np.uint8)),
        (overlay_cam, np.zeros((60, 40), np.float32)),
        (overlay_superpixels, np.zeros((60, 40), np.int64)),
    ],
)
def test_overlays_refuse_another_size(overlay, argument) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="differ in size"):
        overlay(photo(), argument)


def test_legend_lists_the_classes_of_the_picture() -> None:
    entries = legend(np.array([[0, 2, 255], [2, 1, 0]], np.uint8), ["background", "cat", "dog"], PALETTE)
    assert entries == [
        ("cat", tuple(PALETTE[1].tolist())),
        ("dog", tuple(PALETTE[2].tolist())),
        ("ignore", (255, 255, 255)),
    ]


def test_panel_scales_tiles_to_one_height_in_order() -> None:
    red, green = np.zeros((50, 100, 3), np.uint8), np.zeros((200, 100, 3), np.uint8)
    red[..., 0], green[..., 1] = 255, 255
    pixels = np.asarray(panel([("red", red), ("green", green)], height=100))
    is_red, is_green = (pixels == [255, 0, 0]).all(axis=2), (pixels == [0, 255, 0]).all(axis=2)
    assert (is_red.sum(), is_green.sum()) == (100 * 200, 100 * 50)
    assert np.nonzero(is_red)[1].max() < np.nonzero(is_green)[1].min()
    assert (np.nonzero(is_red)[0].min(), np.nonzero(is_red)[0].max()) == (
        np.nonzero(is_green)[0].min(),
        np.nonzero(is_green)[0].max(),
    )


def test_panel_draws_the_legend_and_wraps_it() -> None:
    tile = [("photo", np.zeros((50, 100, 3), np.uint8))]
    plain, one = panel(tile, 100), panel(tile, 100, [("cat", (0, 0, 255))])
    many = panel(tile, 100, [(f"class {index}", (0, index, 255)) for index in range(12)])
    assert plain.height < one.height < many.height
    assert plain.width == one.width == many.width
    assert ((np.asarray(one) == [0, 0, 255]).all(axis=2)).sum() > 50
    shown = {tuple(color) for color in np.asarray(many).reshape(-1, 3).tolist()}
    assert {(0, index, 255) for index in range(12)} <= shown


@pytest.mark.parametrize("size", [(1, 3000), (3000, 1), (1, 1)])
def test_panel_survives_odd_shapes_and_long_texts(size: tuple[int, int]) -> None:
    sheet = panel([("a title that is far too long " * 5, photo(*size))], 60, [("name " * 50, (1, 2, 3)), ("b", (4, 5, 6))])
    assert sheet.width <= 4 * 60 + 16


def test_contact_sheet_is_a_grid() -> None:
    colors = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    sheet = contact_sheet([Image.new("RGB", (20 + 10 * n, 30), color) for n, color in enumerate(colors)], columns=2)
    assert sheet.size == (40 + 30 + 3 * 8, 2 * 30 + 3 * 8)
    assert [sheet.getpixel(place) for place in ((8, 8), (56, 8), (8, 46), (60, 50))] == [*colors, GROUND]


@pytest.mark.parametrize(("count", "columns"), [(0, 1), (1, 0)])
def test_contact_sheet_refuses_nothing(count: int, columns: int) -> None:
    with pytest.raises(ValueError, match="contact sheet"):
        contact_sheet([Image.new("RGB", (2, 2))] * count, columns)


def test_panel_refuses_nothing() -> None:
    with pytest.raises(ValueError, match="at least one tile"):
        panel([])


@pytest.mark.parametrize(
    ("name", "lacking"),
    [
        ("cat", ""),
        ("Stra\xdfe \xe9t\xe9", ""),
        ("\u043a\u043e\u0448\u043a\u0430", ""),
        ("\U00013080\U00013081", "\U00013080\U00013081"),
    ],
    ids=["english", "latin", "cyrillic", "letters without a font"],
)
def test_names_are_drawn_with_a_font_that_has_their_letters(name: str, lacking: str) -> None:
    assert letters_without_font([name, "cat"]) == lacking
    drawn = [np.asarray(font_for([text], 20).getmask(letter)) for text, letter in ((name, name[0]), (name, name[1]))]
    assert bool(lacking) == np.array_equal(*drawn)  # both letters are the same box
