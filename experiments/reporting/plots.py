"""Turns charts into Plotly figures. The page colours text and grid, for its light or dark theme."""

import math
from html import escape
from typing import Any

import plotly.graph_objects as go

from experiments.reporting.chart import Chart, Field, Map, Panel, Series

_SYMBOLS = {"o": "circle", "s": "square", "^": "triangle-up", "D": "diamond"}
_DASHES = {"-": "solid", "--": "dash", "-.": "dashdot", ":": "dot"}
_MARKS = 12  # The most marks on a line.
_DECADES = 8  # The most decades that each get a label.
_FONT = 13  # Pixels.


def draw(chart: Chart) -> list[dict[str, Any]]:
    """Returns a Plotly figure for each panel, in JSON types."""
    figures = []
    for panel in chart.panels:
        layout = (
            _field_layout(chart)
            if isinstance(panel.field, Field)
            else _map_layout(chart)
            if panel.field
            else _layout(chart, panel)
        )
        figure = go.Figure(_traces(chart, panel), layout)
        figures.append(figure.to_plotly_json())
        figures[-1]["layout"].pop("template", None)
    return figures


def _traces(chart: Chart, panel: Panel) -> list[Any]:
    if isinstance(panel.field, Field):
        return [_contour(panel.field, *chart.extent()), _middle()]
    if panel.field:
        return [_heatmap(panel.field, *chart.extent())]
    bands = [_band(series) for series in panel.series if len(series.band)]
    return bands + [_line(series, chart) for series in panel.series]


def _line(series: Series, chart: Chart) -> go.Scatter:
    color, marker, line = series.style
    value = "%{y:.2%}" if chart.percent else "%{y:.4~g}"
    names = [escape(name) for name in series.names]
    what = "%{text}" if any(names) else f"{escape(chart.x.partition(' (')[0])} %{{x}}"
    trace = go.Scatter(
        x=list(series.x),
        y=[None if y is None else float(f"{y:.5g}") for y in series.y],
        name=escape(series.run or series.label),
        text=names or None,
        mode="+".join([*(["lines"] if line else []), *(["markers"] if marker else [])]),
        opacity=series.strength,
        line={"color": color, "dash": _DASHES.get(line, "solid"), "width": 2 if marker else 1.5},
        marker={"color": color, "symbol": _SYMBOLS.get(marker), "size": 8 if line else 6}
        | ({"maxdisplayed": _MARKS} if line else {}),
        hovertemplate=f"{what}: {value}"
        + ("" if not line else "<br>%{fullData.name}")
        + "<extra></extra>",
        meta={"run": series.run, "dash": _DASHES.get(line, "solid")},
    )
    if len(series.deviations):
        trace.error_y = {"array": list(series.deviations), "thickness": 1.5}
    return trace


def _band(series: Series) -> go.Scatter:
    """The band around a line: its upper edge, then back along the lower one."""
    points = series.edges()
    edges = [(x, high) for x, _, high in points] + [(x, low) for x, low, _ in points[::-1]]
    return go.Scatter(
        x=[x for x, _ in edges],
        y=[float(f"{y:.5g}") for _, y in edges],
        fill="toself",
        fillcolor=series.style.color,
        opacity=0.2,
        line={"width": 0},
        mode="lines",
        hoverinfo="skip",
        meta={"run": series.run, "dash": _DASHES.get(series.style.line, "solid")},
    )


def _contour(field: Field, low: float, high: float) -> go.Contour:
    return go.Contour(
        x=list(field.positions),
        y=list(field.positions),
        z=[list(row) for row in field.values],
        autocontour=False,
        contours={"start": low, "end": high, "size": (high - low) / 15},
        zmin=low,
        zmax=high,
        colorscale="Viridis",
        line={"width": 0.5},
        colorbar={"title": {"text": field.label, "side": "right"}, "thickness": 12},
        hovertemplate="%{x:.2f}, %{y:.2f}: %{z:.2f}<extra></extra>",
    )


def _heatmap(found: Map, low: float, high: float) -> go.Heatmap:
    return go.Heatmap(
        x=list(map(escape, found.columns)),
        y=list(map(escape, found.rows)),
        z=[list(row) for row in found.values],
        zmin=low,
        zmax=high,
        colorscale="Viridis",
        texttemplate="%{z:.2%}",
        colorbar={"tickformat": "~%", "thickness": 12},
        hovertemplate="%{y}, depth %{x}: %{z:.2%}<extra></extra>",
    )


def _middle() -> go.Scatter:
    marker = {"symbol": "cross-thin", "size": 12, "line": {"width": 2, "color": "white"}}
    return go.Scatter(x=[0], y=[0], mode="markers", marker=marker, hoverinfo="skip")


def _layout(chart: Chart, panel: Panel) -> dict[str, Any]:
    x: dict[str, Any] = {"title": {"text": chart.x}}
    if panel.log_x:
        x |= {"type": "log", "exponentformat": "power"}
    if chart.ticks:
        x |= {"tickvals": list(chart.ticks)}
    y: dict[str, Any] = {"title": {"text": chart.y}, "automargin": True}
    if chart.log:
        # Plotly writes powers a quarter larger.
        y |= {"type": "log", "exponentformat": "power", "tickfont": {"size": _FONT / 1.25}}
        low, high = _range(chart)
        y |= {"dtick": math.ceil((high - low) / _DECADES)}
    if chart.percent:
        y |= {"tickformat": "~%", "rangemode": "tozero"}
    if chart.y and len(chart.panels) > 1:
        y |= {"range": _range(chart)}
    return _frame(x, y)


def _range(chart: Chart) -> list[float]:
    """The range of y for all panels of a chart, so that they can be compared."""
    series = [one for panel in chart.panels for one in panel.series]
    values = [
        value + sign * (extra or 0.0)
        for one in series
        for value, extra in zip(one.y, one.deviations or [0.0] * len(one.y), strict=True)
        for sign in (-1, 1)
        if value is not None
    ]
    values += [edge for one in series if one.band for _, *edges in one.edges() for edge in edges]
    values = values or [1.0]
    if chart.log:
        return [math.log10(min(values)) - 0.1, math.log10(max(values)) + 0.1]
    return [min(0.0, *values), 1.05 * max(values)]


def _field_layout(chart: Chart) -> dict[str, Any]:
    y = {"title": {"text": chart.y}, "scaleanchor": "x", "constrain": "domain"}
    return _frame({"title": {"text": chart.x}, "constrain": "domain"}, y)


def _map_layout(chart: Chart) -> dict[str, Any]:
    x = {"title": {"text": chart.x}, "type": "category"}
    y = {
        "title": {"text": chart.y},
        "type": "category",
        "autorange": "reversed",
        "automargin": True,
    }
    return _frame(x, y)


def _frame(x: dict[str, Any], y: dict[str, Any]) -> dict[str, Any]:
    margin = {"l": 56, "r": 8, "t": 8, "b": 44}
    return {
        "xaxis": x,
        "yaxis": y,
        "font": {"size": _FONT},
        "margin": margin,
        "showlegend": False,
        "hovermode": "closest",
    }
