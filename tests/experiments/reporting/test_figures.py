import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import FillBetweenPolyCollection

from experiments import report
from experiments.reporting import charts, curves, figures
from experiments.reporting.chart import (
    MOST_LINES,
    Chart,
    Map,
    Panel,
    Series,
    drawable,
    is_crowded,
)
from experiments.reporting.styling import Style, group_styles

LINE, POINTS = Style("red", "o"), Style("red", "o", "")


def chart(*panels, **fields):
    return Chart("name", "title", "caption", "x", "y", panels, **fields)


def points(drawn):
    """All finite points of the axes of a figure."""
    for axes in drawn.axes:
        for line in axes.lines:
            yield from ((axes, x, y) for x, y in line.get_xydata())
        for collection in axes.collections:
            if isinstance(collection, FillBetweenPolyCollection):  # A band.
                places = np.concatenate([path.vertices for path in collection.get_paths()])
            else:
                places = np.ma.filled(collection.get_offsets(), np.nan)
            yield from ((axes, x, y) for x, y in places)


def assert_all_inside(drawn):
    seen = [(axes, x, y) for axes, x, y in points(drawn) if np.isfinite([x, y]).all()]
    assert seen
    for axes, x, y in seen:
        (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
        assert left <= x <= right and low <= y <= high, (axes.get_title(), x, y)


@pytest.mark.parametrize("style", [LINE, POINTS], ids=["line", "points"])
@pytest.mark.parametrize("fields", [{"percent": True}, {"log": True}, {}], ids=str)
def test_every_value_is_inside_its_axes(style, fields):
    """Panels share an axis, and each of them may have the largest value."""
    small, large = ((0.1, 0.2, None), (0.8, 0.9, 0.7))
    for panels in ((small, large), (large, small)):
        series = [Series("", (1, 2, 3), y, style) for y in panels]
        base = Series("", (1, 2, 3), (0.1, 0.15, 0.2), LINE)
        drawn = figures.draw(chart(*(Panel("", (one, base)) for one in series), **fields))
        assert_all_inside(drawn)
        if "percent" in fields:
            assert all(axes.get_ylim()[0] == 0 for axes in drawn.axes)


def test_every_value_of_the_committed_figures_is_inside_its_axes():
    tables, diagnostics = report.read(Path("experiments/results/digits"))
    shown = [*diagnostics, curves.means(tables.records)]
    for one in drawable(shown):
        if not one.panels[0].field:
            assert_all_inside(figures.draw(one))


@pytest.mark.parametrize("steps", [8_000, 64_000, 600_000])
def test_numbers_of_steps_do_not_overlap(steps):
    panel = Panel("", (Series("", (0, steps), (0.9, 0.1), LINE),))
    drawn = figures.draw(chart(panel, panel, panel))
    drawn.draw_without_rendering()
    for axes in drawn.axes:
        boxes = [label.get_window_extent() for label in axes.get_xticklabels()]
        assert len(boxes) > 2
        assert all(one.x1 < other.x0 for one, other in itertools.pairwise(boxes))


def test_a_map_writes_each_value_into_its_cell():
    found = Map(("8", "20"), ("0.1", "0.01"), ((0.5, None), (0.25, 1.0)))
    (axes,) = figures.draw(chart(Panel("plain", field=found), percent=True)).axes
    assert [text.get_text() for text in axes.texts] == ["50.00%", "25.00%", "100.00%"]
    assert [text.get_position() for text in axes.texts] == [(0, 0), (0, 1), (1, 1)]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0.1", "0.01"]


def test_a_legend_of_long_names_fits_into_the_figure():
    names = [f"a rather long name of a kind, lr 0.{i}" for i in range(9)]
    panel = Panel("", tuple(Series(name, (1,), (1,), LINE) for name in names))
    for panels in ([panel], [panel, panel]):
        drawn = figures.draw(chart(*panels))
        drawn.draw_without_rendering()
        legend = drawn.legends[0] if len(panels) > 1 else drawn.axes[0].get_legend()
        box, width = legend.get_window_extent(), drawn.bbox.width
        assert box.x0 >= 0 and box.x1 <= width


def test_one_kind_with_many_values_gets_a_panel_for_each():
    rows = [
        {"group": f"plain, lr {i}", "kind": "plain", "depth": depth, "train_error": 0.1 * i / 20,
         "train_error_std": None, "n": 1, "state": "finished", "run": f"{i}-{depth}", "seed": 0}
        for i in range(16) for depth in (8, 20)
    ]  # fmt: skip
    table = pd.DataFrame(rows)
    styles = group_styles({str(row["group"]): "plain" for row in rows})
    (shown,) = drawable([charts.degradation(table, table, styles, ["optim.lr"])])
    assert [panel.title for panel in shown.panels] == [f"lr {i}" for i in range(16)]


def test_a_legend_of_lines_is_no_line():
    line, key = Series("a", [1], [1], LINE), Series("key", (), (), LINE)
    looks = [LINE._replace(color=str(i)) for i in range(MOST_LINES)]
    lines = [replace(line, label=look.color, style=look) for look in looks]
    full = Panel("", (*lines, key))
    assert not is_crowded(chart(full))
    assert is_crowded(chart(Panel("", (*full.series, line))))
