"""Charts of errors against what was measured before training, from small tables."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from experiments.reporting import charts, curves, figures, plots, signal_charts
from experiments.reporting.chart import MOST_LINES, Chart, Panel, Series, drawable
from experiments.reporting.styling import group_styles


def runs(**columns):
    size = len(next(iter(columns.values())))
    whole: dict[str, Any] = {"run": [f"r{i}" for i in range(size)]}
    whole |= {
        "state": ["finished"] * size,
        "seed": [0] * size,
        "kind": ["residual"] * size,
        "depth": [20] * size,
    }
    return pd.DataFrame(whole | columns)


def signals(**columns):
    size = len(next(iter(columns.values())))
    whole: dict[str, Any] = {"run": [f"r{i}" for i in range(size)]}
    whole |= {"seed": [0] * size, "depth": [20] * size}
    whole |= {name: [1.0] * size for name in ("gradient_ratio", "predicted_ratio")}
    whole |= {"neighbour_error": [50.0] * size, "gradient_cosine": [0.1] * size}
    return pd.DataFrame(whole | columns)


def test_each_finished_run_is_a_mark_in_every_panel():
    kinds = ["plain", "residual", "plain"]
    table = runs(kind=kinds, train_error=[0.9, 0.0, 0.8], state=["finished", "finished", "running"])
    measured = signals(kind=kinds, gradient_ratio=[1000.0, 10.0, 500.0])
    styles = group_styles({"plain": "plain", "residual": "residual"})
    chart = signal_charts.predictors(measured, table, styles)
    ratio, neighbour, cosine = chart.panels
    assert [(one.label, list(one.x), one.y) for one in ratio.series] == [
        ("plain", [1000.0], [0.9]),
        ("residual", [10.0], [0.0]),
    ]
    assert ratio.log_x and not neighbour.log_x and not cosine.log_x


def test_a_number_that_varies_is_an_axis():
    table = runs(
        depth=[20, 20, 20, 56],
        train_error=[0.4, 0.6, 0.1, 0.9],
        **{"model.shortcut_scale": [0.5, 0.5, 1.0, 0.5]},
    )
    (panel,) = signal_charts.by_value(table, ("model.shortcut_scale",)).panels
    lines = {one.label: (list(one.x), one.y) for one in panel.series if one.label}
    assert lines["depth 20"] == ([0.5, 1.0], [pytest.approx(0.5), 0.1])
    assert lines["depth 56"] == ([0.5], [0.9])
    assert not panel.log_x


@pytest.mark.parametrize(
    ("columns", "varied"),
    [
        ({"optim.lr": [0.1, 0.01], "kind": ["plain", "residual"]}, ("optim.lr",)),
        ({"model.widths": ["(8,)", "(16,)"]}, ("model.widths",)),
        ({"data.flip": [True, False]}, ("data.flip",)),
        ({"a": [1, 2], "b": [1, 2]}, ("a", "b")),
        ({"optim.lr": [0.1, None]}, ("optim.lr",)),  # The older run does not say it.
        ({}, ()),
    ],
)
def test_other_grids_have_no_such_axis(columns, varied):
    table = runs(train_error=[0.1, 0.2], **columns)
    assert drawable([signal_charts.by_value(table, varied)]) == []


def test_measured_and_predicted_ratios_stand_side_by_side():
    rows = signals(
        kind=["plain", "plain"],
        depth=[56, 20],
        gradient_ratio=[50.0, 5.0],
        predicted_ratio=[90.0, None],
    )
    (panel,) = signal_charts.theory(rows, group_styles({"plain": "plain"})).panels
    measured, predicted = panel.series
    assert (list(measured.x), measured.y) == ([20, 56], [5.0, 50.0])
    assert predicted.y == [None, 90.0]


def test_more_kinds_than_colours_get_a_panel_each_beside_plain_and_residual():
    kinds = ["plain", "residual", *(f"kind {i}" for i in range(5))]
    table = runs(kind=kinds, group=kinds, train_error=[0.1] * 7)
    summary = table.assign(train_error_std=[None] * 7, n=1)
    styles = group_styles({kind: kind for kind in kinds})
    chart = charts.degradation(table, summary, styles)
    assert [panel.title for panel in chart.panels] == [f"{kind} (n = 1)" for kind in kinds[2:]]
    labels = [one.label for one in chart.panels[-1].series if one.label]
    assert labels == ["plain (n = 1)", "residual (n = 1)", "the title's kind"]


def test_a_depth_with_one_seed_has_no_error_bar():
    table = runs(kind=["plain"] * 3, group=["plain"] * 3, train_error=[0.1, 0.3, 0.5])
    table["depth"], table["seed"] = [20, 20, 56], [0, 1, 0]
    summary = pd.DataFrame(
        {"group": "plain", "kind": "plain", "depth": [20, 56], "train_error": [0.2, 0.5],
         "train_error_std": [0.14, None], "n": [2, 1]}
    )  # fmt: skip
    chart = charts.degradation(table, summary, group_styles({"plain": "plain"}))
    means = chart.panels[0].series[0]
    assert (means.label, means.deviations) == ("plain (mean ± deviation, n = 1 to 2)", [0.14, None])
    lines: Any
    (lines,) = figures.draw(chart).axes[0].containers
    lengths = [np.ptp(bar[:, 1]) for bar in lines.lines[2][0].get_segments() if len(bar)]
    assert lengths[0] == pytest.approx(0.28) and not np.nansum(lengths[1:])
    (shown,) = plots.draw(chart)
    assert list(shown["data"][0]["error_y"]["array"]) == [0.14, None]


def test_a_panel_with_more_lines_than_one_can_read_is_left_out():
    def chart(count):
        styles = group_styles({f"{i}": f"{i}" for i in range(count)})
        lines = [Series(kind, [0, 1], [0.0, 1.0], style) for kind, style in styles.items()]
        return Chart("x", "x", "x", "x", "y", (Panel("", tuple(lines)),))

    assert drawable([chart(MOST_LINES)])
    assert not drawable([chart(MOST_LINES + 1)])


def test_a_panel_with_lines_that_nobody_can_tell_apart_is_left_out():
    rows = [
        {"run": f"{i}", "group": f"kind {i}", "depth": 8, "seed": 0, "error": 0.5}
        | {"measure": measure, "step": 1}
        for i in range(7)
        for measure in ("test_error", "running_error")
    ]
    records = pd.DataFrame(rows)
    for count in (6, 7):  # Of seven kinds, two have one colour.
        groups = {f"kind {i}": f"kind {i}" for i in range(count)}
        of_groups = records[records["group"].isin(list(groups))]
        assert bool(drawable([curves.by_depth(of_groups, groups)])) == (count == 6)


@pytest.mark.parametrize("kinds, values", [(12, 1), (2, 16)])
def test_no_two_groups_look_the_same(kinds, values):
    groups = {f"{kind}, lr {i}": f"{kind}" for kind in range(kinds) for i in range(values)}
    styles = group_styles(groups)
    assert len(set(styles.values())) == kinds * values


def test_a_line_of_many_points_has_marks_on_the_page_too():
    (style,) = group_styles({"plain": "plain"}).values()
    line = Series("plain", range(56), [0.5] * 56, style)
    [figure] = plots.draw(Chart("x", "x", "x", "x", "y", (Panel("", (line,)),)))
    (trace,) = figure["data"]
    assert trace["mode"] == "lines+markers" and trace["marker"]["maxdisplayed"] == 12
