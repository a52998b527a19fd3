"""What a figure shows. `figures.py` draws it on paper, `plots.py` on the page."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from experiments.reporting.styling import Style


@dataclass(frozen=True)
class Series:
    """Points joined by a line, or single points if `style.line` is empty. None is a gap."""

    label: str
    x: Sequence[float]
    y: Sequence[float | None]
    style: Style
    strength: float = 1.0
    """Opacity."""
    deviations: Sequence[float | None] = ()
    """Half the length of each point's error bar; None: it has none."""
    band: Sequence[float] = ()
    """Half the height of a band around the line, at each point."""
    names: Sequence[str] = ()
    """The name of each point, shown when the mouse is over it."""
    run: str = ""
    """The name of the curve for the page's switches: a run, or a mean such as `plain 56`."""
    rank: int = 0
    """The place in the legend. Series of equal rank keep their order."""

    def edges(self) -> list[tuple[float, float, float]]:
        """x, and the lower and upper edge of the band there. A band does not cross 0."""
        points = zip(self.x, self.y, self.band, strict=True)
        return [(x, max(y - h, min(y, 0.0)), y + h) for x, y, h in points if y is not None]


@dataclass(frozen=True)
class Field:
    """Values at the nodes of a square grid. Row i and column j are at positions i and j."""

    label: str
    positions: Sequence[float]
    values: Sequence[Sequence[float | None]]


@dataclass(frozen=True)
class Map:
    """A value for each pair of two things that a grid varies. None is a gap."""

    columns: Sequence[str]
    rows: Sequence[str]
    values: Sequence[Sequence[float | None]]


@dataclass(frozen=True)
class Panel:
    """One pair of axes: lines, a field or a map."""

    title: str
    series: tuple[Series, ...] = ()
    field: Field | Map | None = None
    log_x: bool = False

    def is_empty(self) -> bool:
        """Whether nothing could be drawn."""
        rows = self.field.values if self.field else [series.y for series in self.series]
        return all(value is None for row in rows for value in row)


@dataclass(frozen=True)
class Chart:
    """Panels with the same axes."""

    name: str
    """The name of its files."""
    title: str
    caption: str
    """A text that says what the chart shows and how to read it."""
    x: str
    y: str
    panels: tuple[Panel, ...]
    log: bool = False
    seeds: tuple[int, ...] = ()
    """The seeds of the networks that it shows."""
    percent: bool = False
    """Whether y is a fraction that is shown in per cent."""
    ticks: tuple[int, ...] = ()
    """Ticks of x; empty: chosen by the plotting library."""
    left_out: str = ""
    """Which runs it does not show."""

    def legend(self) -> list[Series]:
        """One series for each label, in the legend's order."""
        series = [series for panel in self.panels for series in panel.series]
        first = list({one.label: one for one in reversed(series) if one.label}.values())[::-1]
        return sorted(first, key=lambda one: one.rank)

    def extent(self) -> tuple[float, float]:
        """The least and the largest value of all fields, so that panels share one scale."""
        fields = [panel.field.values for panel in self.panels if panel.field]
        values = [
            value for value in itertools.chain(*itertools.chain(*fields)) if value is not None
        ]
        low = min(values, default=0.0)
        return low, max(max(values, default=1.0), low + 1e-3)


def seeds_of(rows: pd.DataFrame) -> tuple[int, ...]:
    """The seeds of a table's rows, ascending."""
    return tuple(sorted(int(seed) for seed in rows["seed"].dropna().unique()))


MOST_LINES = 12
"""In one panel."""


def drawable(charts: Iterable[Chart]) -> list[Chart]:
    """Removes empty panels, charts without another, and charts that are crowded."""
    full = [
        replace(chart, panels=tuple(panel for panel in chart.panels if not panel.is_empty()))
        for chart in charts
    ]
    return [chart for chart in full if chart.panels and not is_crowded(chart)]


def is_crowded(chart: Chart) -> bool:
    """Whether a panel has more lines than one can read, or lines that one cannot tell apart.

    Lines with a common label count once.
    """
    for panel in chart.panels:
        lines = {(one.label, one.style) for one in panel.series if one.style.line and len(one.x)}
        labels, looks = {label for label, _ in lines}, {style for _, style in lines}
        if len(labels) > MOST_LINES or len(looks) < len(lines):
            return True
    return False


def not_drawn(charts: Iterable[Chart]) -> str:
    """A line that names the charts that `drawable` removes for their lines; "" if there is none."""
    left = "; ".join(chart.title for chart in charts if is_crowded(chart))
    why = f"a panel would have more than {MOST_LINES} lines, or two that look the same"
    return f"Not drawn, since {why}: {left}." if left else ""


def numbers(
    values: Sequence[float | None] | pd.Series, *, positive: bool = False
) -> list[float | None]:
    """Replaces values that an axis cannot show by None. `positive`: for a logarithmic axis.

    The limit is float32's range. No measured value is beyond it, and near the limit of float64 the
    axes' own sums overflow.
    """
    limits = np.finfo(np.float32)
    low, high = float(limits.tiny if positive else limits.min), float(limits.max)
    values = np.asarray(values, float).tolist()  # None becomes NaN.
    return [value if low <= value <= high else None for value in values]
