"""What the figures of a sweep show; `figures.py` draws it on paper, `plots.py` in the report."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pandas as pd

from experiments.reporting.drawing import colormaps, to_hex


class Style(NamedTuple):
    """Of a kind: marker and line tell it apart in grey. By matplotlib's names."""

    color: str
    marker: str
    line: str = "-"


Styles = Mapping[str, Style]
"""By kind: of all in a sweep, so that each looks the same in every chart."""

# Okabe and Ito's colours, safe for the colour-blind.
KIND_STYLES = (
    Style("#D55E00", "o", "--"),
    Style("#0072B2", "s", "-"),
    Style("#009E73", "^", "-."),
    Style("#CC79A7", "D", ":"),
)


@dataclass(frozen=True)
class Series:
    """Points joined by a line, or single ones if `style.line` is empty; None is a gap."""

    label: str
    x: Sequence[float]
    y: Sequence[float | None]
    style: Style
    strength: float = 1.0
    """Opacity."""
    deviations: Sequence[float] = ()
    """Half an error bar's length, for each point."""
    names: Sequence[str] = ()
    """What each point is, for who asks."""
    run: str = ""
    """The run it is of, if it is of one."""
    rank: int = 0
    """Its place in the legend; equal ones stand as they come."""


@dataclass(frozen=True)
class Field:
    """Values at the nodes of a square grid; row i, column j: positions i and j."""

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
    """Of its files."""
    title: str
    caption: str
    """What is shown, and how to read it."""
    x: str
    y: str
    panels: tuple[Panel, ...]
    log: bool = False
    percent: bool = False
    """Whether y is a fraction, to be read in per cent."""
    ticks: tuple[int, ...] = ()
    """Of x; empty: as the axis likes."""

    def legend(self) -> list[Series]:
        """A series for each label, in order."""
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
    """Without empty panels, and without charts that have no other."""
    full = [
        replace(chart, panels=tuple(panel for panel in chart.panels if not panel.is_empty()))
        for chart in charts
    ]
    return [chart for chart in full if chart.panels]


def kind_styles(kinds: Iterable[str]) -> Styles:
    """By kind, whichever the order they come in; no two alike among the first 16."""
    return {kind: _style(i) for i, kind in enumerate(sorted(set(kinds)))}


def _style(i: int) -> Style:
    # A colour that comes again has another marker and line.
    size = len(KIND_STYLES)
    return KIND_STYLES[(i + i // size) % size]._replace(color=KIND_STYLES[i % size].color)


def depth_colors(depths: Iterable[int]) -> dict[int, str]:
    """By depth, from dark to light; none so dark or light that it is lost on a page."""
    ordered = sorted(set(depths))
    shades = colormaps["viridis"](np.linspace(0.25, 0.85, len(ordered)))
    return dict(zip(ordered, map(to_hex, shades), strict=True))


def strengths(depths: Iterable[int]) -> dict[int, float]:
    """By depth: the deeper, the stronger; the deepest is opaque."""
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
        caption="Error on the clean training split after the last step, in eval mode. Large marks:"
        " means over seeds, with the sample's deviation if there are several; small marks: single"
        " runs.",
        x="depth (weighted layers)",
        y="training error",
        panels=(Panel("", tuple(series)),),
        percent=True,
        ticks=tuple(sorted(int(depth) for depth in summary["depth"].unique())),
    )


def curves(records: pd.DataFrame) -> Chart:
    """As Fig. 6: error against steps, means over seeds."""
    keys = ["kind", "depth", "measure", "step"]
    means = records.groupby(keys, as_index=False)["error"].mean()
    return _curves(means, "means over seeds", by="depth", y="error (training dashed, test solid)")


def run_curves(records: pd.DataFrame) -> Chart:
    """As Fig. 6, each run by itself."""
    return _curves(records, "one line a run", by="run", y="error")


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
        caption=f"Dashed: running training error, in train mode; solid: test error; {what}.",
        x="step",
        y=y,
        panels=tuple(panels),
        percent=True,
    )


def costs(runs: pd.DataFrame, styles: Styles) -> Chart:
    """What each run took, from `run_tables.costs`."""
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
        caption="Lines: medians over seeds; small marks: single runs. Throughput is the median of a"
        " run's train records after the first. Trace, compile or load is what the first record's"
        " interval took beyond that pace; a program that was compiled before is only loaded.",
        x="depth (weighted layers)",
        y="",
        panels=tuple(panels),
        ticks=tuple(sorted(int(depth) for depth in runs["depth"].unique())),
    )


def numbers(
    values: Sequence[float | None] | pd.Series, *, positive: bool = False
) -> list[float | None]:
    """With None for what an axis cannot show; `positive`: a logarithmic one.

    Nothing beyond float32 was measured, and near the end of float64 the axes' own sums overflow.
    """
    limits = np.finfo(np.float32)
    low, high = float(limits.tiny if positive else limits.min), float(limits.max)
    values = np.asarray(values, float).tolist()  # None becomes NaN.
    return [value if low <= value <= high else None for value in values]


def _counts(n: pd.Series) -> str:
    return f"{n.min()}" if n.min() == n.max() else f"{n.min()} to {n.max()}"
