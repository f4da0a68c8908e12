from __future__ import annotations

from dataclasses import replace

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb

from pipelines.datasets.classes import COCO14, VOC12, palette
from pipelines.figures.feature_map import FeaturePanel, Marks, feature_map

COLOURS = palette()[1:]
CLASSES = np.array([0, 0, 11, 14, 14, 14])


def marks(classes, seed: int = 0, spread: float = 1.0) -> Marks:
    classes = np.asarray(classes, np.int64)
    return Marks(spread * np.random.default_rng(seed).normal(size=(len(classes), 2)), classes)


def side(title: str = "before", text_spread: float = 1.0) -> FeaturePanel:
    present = np.unique(CLASSES)
    return FeaturePanel(title, f"{title}: numbers", marks(CLASSES), marks(present, 1, text_spread), marks(present, 2))


def drawn(left: FeaturePanel, right: FeaturePanel, names=VOC12.names):
    figure = feature_map(left, right, names, COLOURS, "caption")
    FigureCanvasAgg(figure).draw()
    return figure


def test_every_dot_star_and_cross_is_where_and_what_it_should_be():
    before, after = side(), replace(side("after"), samples=marks(CLASSES, 5))
    figure = drawn(before, after)
    for axes, given in zip(figure.axes, (before, after), strict=True):
        assert (axes.get_title(loc="left"), axes.get_xlabel()) == (given.title, given.note)
        for index, dots in zip(np.unique(CLASSES), axes.collections, strict=True):
            np.testing.assert_array_equal(dots.get_offsets(), given.samples.points[index == CLASSES])
            np.testing.assert_allclose(dots.get_facecolor()[0, :3], COLOURS[index] / 255)
        for marker, expected in (("*", given.text), ("x", given.image)):
            lines = [line for line in axes.lines if line.get_marker() == marker]
            np.testing.assert_array_equal([line.get_xydata()[0] for line in lines], expected.points)
            np.testing.assert_allclose([to_rgb(line.get_color()) for line in lines], COLOURS[expected.classes] / 255)
        assert [text.get_text() for text in axes.texts] == ["aeroplane", "dog", "person"]
        (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
        everything = np.concatenate([given.samples.points, given.text.points, given.image.points])
        assert ((everything > [left, low]) & (everything < [right, high])).all()
    (legend,) = figure.legends
    shown = [text.get_text() for text in legend.get_texts()]
    assert shown == ["aeroplane", "dog", "person", "text prototype", "image prototype"]


def test_prototypes_of_no_class_are_neutral():
    given = replace(side(), image=marks([-1, -1]))
    crosses = [line for line in drawn(given, given).axes[0].lines if line.get_marker() == "x"]
    (colour,) = {to_rgb(line.get_color()) for line in crosses}
    assert len(crosses) == 2
    assert not (np.abs(COLOURS[:20] / 255 - colour).sum(axis=1) < 0.05).any()


def test_near_colours_differ_in_shape():
    """Two of 20 classes whose colours are near one another would else be one."""
    dots = replace(side(), samples=marks(range(20)), text=marks(range(20)))
    collections = drawn(dots, dots).axes[0].collections
    shapes = [collection.get_paths()[0].vertices.tobytes() for collection in collections]
    assert len(set(shapes)) == 11
    for first in range(20):
        for second in range(first):
            if np.abs(COLOURS[first].astype(int) - COLOURS[second]).sum() <= 64:
                assert shapes[first] != shapes[second], (VOC12.names[first], VOC12.names[second])


@pytest.mark.parametrize(("names", "spread"), [(VOC12.names, 1.0), (VOC12.names, 0.01), (COCO14.names, 1.0)])
def test_names_do_not_cover_one_another(names, spread):
    every = np.arange(len(names))
    given = replace(side(), samples=marks(every), text=marks(every, 1, spread), image=marks(every, 2))
    figure = drawn(given, given, names)
    renderer = figure.canvas.get_renderer()
    frame = figure.axes[0].get_window_extent()
    # Text's own box: an annotation's would reach to its star
    boxes = [mpl.text.Text.get_window_extent(text, renderer) for text in figure.axes[0].texts]
    assert len(boxes) == len(names)
    for place, box in enumerate(boxes):
        assert frame.x0 <= box.x0
        assert box.x1 <= frame.x1
        for other in boxes[:place]:
            width = min(box.x1, other.x1) - max(box.x0, other.x0)
            height = min(box.y1, other.y1) - max(box.y0, other.y0)
            assert min(width, height) < 8  # pixels at 150 dpi: line spacing above and below the letters


@pytest.mark.parametrize("points", [[[3.0, 4.0]], [[3.0, 4.0]] * 2])
def test_points_in_one_place(points):
    one = Marks(np.array(points), np.zeros(len(points), np.int64))
    given = FeaturePanel("", "", one, replace(one, points=one.points[:1], classes=one.classes[:1]), one)
    assert len(drawn(given, given).axes) == 2


def test_legend_of_many_classes_stays_on_the_page():
    every = np.arange(80)
    given = replace(side(), samples=marks(every), text=marks(every[:1]))
    figure = drawn(given, given, COCO14.names)
    legend = figure.legends[0].get_window_extent()
    note = figure.axes[0].xaxis.label.get_window_extent()
    assert legend.y0 >= 0
    assert legend.y1 < note.y0
    assert legend.x0 >= 0
    assert legend.x1 <= figure.bbox.x1


def test_refuses_nothing():
    empty = replace(side(), samples=marks([]))
    with pytest.raises(ValueError, match="at least one sample"):
        feature_map(empty, empty, VOC12.names, COLOURS, "")
