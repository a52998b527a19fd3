"""The content of a sweep's figures. `figures.py` draws it on paper, `plots.py` on the page."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pandas as pd

from experiments.reporting.drawing import colormaps, to_hex


class Style(NamedTuple):
    """The look of a kind, in matplotlib's names. Marker and line distinguish kinds in grey."""

    color: str
    marker: str
    line: str = "-"


Styles = Mapping[str, Style]
"""Kind -> style, for all kinds of a sweep: a kind looks the same in every chart."""

# Okabe and Ito's colours, safe for the colour-blind.
KIND_STYLES = (
    Style("#D55E00", "o", "--"),
    Style("#0072B2", "s", "-"),
    Style("#009E73", "^", "-."),
    Style("#CC79A7", "D", ":"),
)


@dataclass(frozen=True)
class Series:
    """Points joined by a line, or single points if `style.line` is empty. None is a gap."""

    label: str
    x: Sequence[float]
    y: Sequence[float | None]
    style: Style
    strength: float = 1.0
    """Opacity."""
    deviations: Sequence[float] = ()
    """Half the length of each point's error bar."""
    names: Sequence[str] = ()
    """The name of each point, shown when the mouse is over it."""
    run: str = ""
    """The run that the series belongs to, if it is one."""
    rank: int = 0
    """The place in the legend. Series of equal rank keep their order."""


@dataclass(frozen=True)
class Field:
    """Values at the nodes of a square grid. Row i and column j are at positions i and j."""

    label: str
    positions: Sequence[float]
    values: Sequence[Sequence[float | None]]


@dataclass(frozen=True)
class Panel:
    """One pair of axes: lines, or a field."""

    title: str
    series: tuple[Series, ...] = ()
    field: Field | None = None

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
    percent: bool = False
    """Whether y is a fraction that is shown in per cent."""
    ticks: tuple[int, ...] = ()
    """Ticks of x; empty: chosen by the plotting library."""

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


def drawable(charts: Iterable[Chart]) -> list[Chart]:
    """Removes empty panels, and charts in which all panels are empty."""
    full = [
        replace(chart, panels=tuple(panel for panel in chart.panels if not panel.is_empty()))
        for chart in charts
    ]
    return [chart for chart in full if chart.panels]


def kind_styles(kinds: Iterable[str]) -> Styles:
    """Kind -> style, in any order of `kinds`. The styles of up to 16 kinds all differ."""
    return {kind: _style(i) for i, kind in enumerate(sorted(set(kinds)))}


def _style(i: int) -> Style:
    # A colour that is used again gets another marker and line.
    size = len(KIND_STYLES)
    return KIND_STYLES[(i + i // size) % size]._replace(color=KIND_STYLES[i % size].color)


def depth_colors(depths: Iterable[int]) -> dict[int, str]:
    """Depth -> colour, from dark to light. All are visible on a dark and on a light page."""
    ordered = sorted(set(depths))
    shades = colormaps["viridis"](np.linspace(0.25, 0.85, len(ordered)))
    return dict(zip(ordered, map(to_hex, shades), strict=True))


def strengths(depths: Iterable[int]) -> dict[int, float]:
    """Depth -> opacity. Deeper networks are stronger; the deepest is opaque."""
    ordered = sorted(set(depths))
    return dict(zip(ordered, np.linspace(1, 0.4, len(ordered))[::-1].tolist(), strict=True))


def degradation(runs: pd.DataFrame, summary: pd.DataFrame, styles: Styles) -> Chart:
    """Training error (clean, eval mode) against depth: means, deviations, single runs."""
    series = []
    for kind, style in styles.items():
        rows = summary[summary["kind"] == kind]
        single = runs[(runs["kind"] == kind) & (runs["state"] == "finished")]
        if rows.empty:
            continue
        many = bool(rows["train_error_std"].notna().any())  # One run has no deviation.
        label = f"{kind} ({'mean ± deviation, ' if many else ''}n = {_counts(rows['n'])})"
        deviations = rows["train_error_std"].fillna(0).tolist() if many else []
        points = rows["depth"].tolist(), rows["train_error"].tolist()
        series.append(Series(label, *points, style, deviations=deviations))
        points = single["depth"].tolist(), single["train_error"].tolist()
        names = single["run"].tolist()
        series.append(Series("", *points, style._replace(line=""), strength=0.4, names=names))
    return Chart(
        name="degradation",
        title="Training error against depth",
        caption="Error on the clean training split after the last step, in eval mode. Large marks"
        " are means over seeds, with the sample deviation if there are several seeds. Small marks"
        " are single runs.",
        x="depth (weighted layers)",
        y="training error",
        panels=(Panel("", tuple(series)),),
        percent=True,
        ticks=tuple(sorted(int(depth) for depth in summary["depth"].unique())),
    )


def curves(records: pd.DataFrame) -> Chart:
    """Error against steps as in Fig. 6, means over seeds."""
    keys = ["kind", "depth", "measure", "step"]
    means = records.groupby(keys, as_index=False)["error"].mean()
    return _curves(means, "means over seeds", by="depth", y="error (training dashed, test solid)")


def run_curves(records: pd.DataFrame) -> Chart:
    """Error against steps as in Fig. 6, with a line for each run."""
    return _curves(records, "one for each run", by="run", y="error")


def _curves(records: pd.DataFrame, what: str, *, by: str, y: str) -> Chart:
    colors = depth_colors(records["depth"])
    panels = []
    for kind, of_kind in records.groupby("kind"):
        series = []
        for (depth, of), rows in of_kind.groupby(["depth", by]):
            for measure, line in (("test_error", "-"), ("running_error", "--")):
                points = rows[rows["measure"] == measure]
                if points.empty:
                    continue
                series.append(
                    Series(
                        f"depth {depth}",
                        points["step"].tolist(),
                        numbers(points["error"]),
                        Style(colors[depth], "", line),
                        run=str(of),
                        rank=depth,
                    )
                )
        panels.append(Panel(str(kind), tuple(series)))
    return Chart(
        name="curves",
        title="Training and test error against steps",
        caption=f"Dashed: running training error, in train mode. Solid: test error. Lines: {what}.",
        x="step",
        y=y,
        panels=tuple(panels),
        percent=True,
    )


def costs(runs: pd.DataFrame, styles: Styles) -> Chart:
    """Speed, time and start-up of each run, from `run_tables.costs`."""
    measures = {
        "images_per_second": "training throughput, images/s",
        "minutes": "time in training steps, min",
        "startup_seconds": "trace, compile or load, s",
    }
    panels = []
    for measure, title in measures.items():
        series = []
        for kind, of_kind in runs.groupby("kind"):
            style = styles[str(kind)]
            rows = of_kind.dropna(subset=[measure])
            medians = rows.groupby("depth")[measure].median()
            series.append(Series(str(kind), medians.index.tolist(), numbers(medians), style))
            points = rows["depth"].tolist(), numbers(rows[measure])
            names = rows["run"].tolist()
            series.append(Series("", *points, style._replace(line=""), strength=0.4, names=names))
        panels.append(Panel(title, tuple(series)))
    return Chart(
        name="costs",
        title="Cost by depth",
        caption="Lines are medians over seeds. Small marks are single runs. Throughput is the"
        " median of a run's train records after the first. Trace, compile or load is the extra"
        " time of the first record's interval. A program that was compiled before is only loaded.",
        x="depth (weighted layers)",
        y="",
        panels=tuple(panels),
        ticks=tuple(sorted(int(depth) for depth in runs["depth"].unique())),
    )


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


def _counts(n: pd.Series) -> str:
    return f"{n.min()}" if n.min() == n.max() else f"{n.min()} to {n.max()}"
