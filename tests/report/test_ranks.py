"""The critical difference diagram shows every name whole, apart from the others, and joins what is alike."""

import io
import itertools
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib import rc_context
from matplotlib.colors import same_color
from PIL import Image

from shiftproof.base.drawing import COLORS
from shiftproof.report.figures import STYLE
from shiftproof.report.ranks import diagram, rank_figure
from shiftproof.tables.statistics import AverageRanks, average_ranks, indistinguishable

HOSTILE = "<script>alert('$x_$')</script> & \\frac{"
LONG = "an algorithm, an optimizer and an annealer with names as long as names can well be, if nobody stops them"


def _names(count):
    return [HOSTILE, LONG, *(f"algorithm_{i} + optimizer_{i}" for i in range(count - 2))]


def _ranks(methods, cells):
    random = np.random.RandomState(methods)
    return average_ranks(random.rand(methods, cells) + np.linspace(0, 1, methods)[:, None])


def _drawn(names, ranks):
    """The axes, and the boxes of its texts in pixels."""
    with rc_context(STYLE):
        figure = diagram(names, ranks)
        figure.draw_without_rendering()
    axes = figure.axes[0]
    texts = [*axes.texts, axes.xaxis.label, *axes.get_xticklabels()]
    return axes, {text: text.get_window_extent() for text in texts}


def _bars(axes):
    return [line for line in axes.lines if same_color(line.get_color(), COLORS[0])]


@pytest.mark.parametrize(("methods", "cells"), [(2, 2), (3, 5), (10, 20), (25, 6), (30, 200)])
def test_texts_do_not_overlap(methods, cells):
    _, boxes = _drawn(_names(methods), _ranks(methods, cells))
    assert not [
        (one.get_text(), other.get_text())
        for one, other in itertools.combinations(boxes, 2)
        if boxes[one].overlaps(boxes[other])
    ]


@pytest.mark.parametrize("ranks", [[1.5, 1.5], [2, 2, 2, 4], [5, 1, 5, 1, 5, 5, 6]])
def test_ties_do_not_overlap(ranks):
    _, boxes = _drawn(_names(len(ranks)), AverageRanks(ranks, 2, None, 1.0))
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes.values(), 2))


@pytest.mark.parametrize("methods", [2, 7, 30])
def test_lines_lead_from_ranks_to_names(methods):
    names, ranks = _names(methods), _ranks(methods, 9)
    axes, _ = _drawn(names, ranks)
    rows = {text.get_text(): text.get_position()[1] for text in axes.texts}
    leaders = [(line.get_xdata()[0], line.get_ydata()[-1]) for line in axes.lines if line.get_ydata()[0] == 0]
    assert sorted(leaders) == sorted((rank, rows[name]) for name, rank in zip(names, ranks.ranks, strict=True))


@pytest.mark.parametrize("methods", [2, 7, 30])
def test_lines_do_not_cross(methods):
    axes, _ = _drawn(_names(methods), _ranks(methods, 200))
    leaders = [(*line.get_xdata()[1:], line.get_ydata()[-1]) for line in axes.lines if line.get_ydata()[0] == 0]
    assert len(leaders) == methods
    for (rank, _, y), (other, end, other_y) in itertools.permutations(leaders, 2):
        assert y < other_y or not min(other, end) < rank < max(other, end)


@pytest.mark.parametrize(("methods", "cells"), [(2, 2), (4, 12), (10, 20), (30, 200)])
def test_bars_join_exactly_the_groups(methods, cells):
    ranks = _ranks(methods, cells)
    axes, _ = _drawn(_names(methods), ranks)
    ordered = sorted(ranks.ranks)
    groups = indistinguishable(ranks.ranks, ranks.critical_difference)
    assert groups
    assert [list(bar.get_xdata()) for bar in _bars(axes)] == [ordered[first : last + 1] for first, last in groups]


def test_bars_do_not_touch():
    axes, _ = _drawn(_names(30), _ranks(30, 200))
    spans = [(bar.get_ydata()[0], bar.get_xdata()[0], bar.get_xdata()[-1]) for bar in _bars(axes)]
    for (y, start, end), (other_y, other_start, other_end) in itertools.combinations(spans, 2):
        assert y != other_y or end < other_start or other_end < start


def test_critical_difference_is_to_scale():
    ranks = _ranks(4, 12)
    axes, _ = _drawn(_names(4), ranks)
    (scale,) = [line for line in axes.lines if line.get_ydata()[0] < 0]
    assert np.ptp(scale.get_xdata()) == pytest.approx(ranks.critical_difference)
    assert axes.texts[-1].get_text() == f"critical difference {ranks.critical_difference:.2f}"


def test_without_a_critical_difference_nothing_is_joined():
    ranks = AverageRanks([1.0, 3.0, 2.0], 1, None, None)
    axes, _ = _drawn(_names(3), ranks)
    assert not _bars(axes)
    assert not [text for text in axes.texts if "critical" in text.get_text()]
    assert set(rank_figure(_names(3), ranks)) == {"svg", "png"}


def test_svg_holds_the_names_and_is_reproducible():
    names, ranks = _names(10), _ranks(10, 20)
    svg = rank_figure(names, ranks)["svg"]
    elements = ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")  # noqa: S314
    texts = {"".join(element.itertext()) for element in elements}
    assert {*names, *(f"{rank:.2f}" for rank in ranks.ranks)} <= texts
    assert svg == rank_figure(names, ranks)["svg"]


@pytest.mark.parametrize("methods", [2, 25])
def test_nothing_is_cut_off(methods):
    image = np.asarray(Image.open(io.BytesIO(rank_figure(_names(methods), _ranks(methods, 9))["png"])).convert("L"))
    assert image.min() < 100
    for edge in (image[:5], image[-5:], image[:, :5], image[:, -5:]):
        assert (edge == 255).all()


def test_every_rank_has_a_name():
    with pytest.raises(ValueError, match="zip"):
        rank_figure(["erm", "mldg"], AverageRanks([1.0, 2.0, 3.0], 4, None, None))
