"""The content of a sweep's figures. `figures.py` draws it on paper, `plots.py` on the page."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from experiments.reporting.styling import (
    COLORS,
    KIND_STYLES,
    KNOWN,
    Style,
    Styles,
    depth_colors,
    group_styles,
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
    band: Sequence[float] = ()
    """Half the height of a band around the line, at each point."""
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
    """Removes empty panels, charts without another, and those with more lines than one can read."""
    full = [
        replace(chart, panels=tuple(panel for panel in chart.panels if not panel.is_empty()))
        for chart in charts
    ]
    return [chart for chart in full if chart.panels and _lines(chart) <= MOST_LINES]


def _lines(chart: Chart) -> int:
    """The number of lines in the fullest panel. Those with a common label count once."""
    return max(len({one.label for one in p.series if one.style.line}) for p in chart.panels)


def degradation(
    runs: pd.DataFrame, summary: pd.DataFrame, styles: Styles, varied: Sequence[str] = ()
) -> Chart:
    """Training error (clean, eval mode) against depth: means, deviations, single runs.

    `varied`: the fields that vary in the grid. Several kinds then get a panel for each combination
    of values. A single kind has one panel, with a line for each combination. More kinds than there
    are colours get a panel each, beside `plain` and `residual`.
    """
    many_kinds = not varied and summary["kind"].nunique() > len(COLORS)
    apart = bool(varied) and summary["kind"].nunique() > 1
    panels: dict[str, list[Series]] = {}
    of_kind = group_styles({kind: kind for kind in summary["kind"]})
    for group, rows in summary.groupby("group", sort=False):
        single = runs[(runs["group"] == group) & (runs["state"] == "finished")]
        kind, values = rows["kind"].iloc[0], str(group)
        values = values.removeprefix(f"{kind}, ")
        name = values if varied and not apart else kind
        many = bool(rows["train_error_std"].notna().any())  # One run has no deviation.
        label = f"{name} ({'mean ± deviation, ' if many else ''}n = {_counts(rows['n'])})"
        deviations = rows["train_error_std"].fillna(0).tolist() if many else []
        points = rows["depth"].tolist(), rows["train_error"].tolist()
        style = of_kind[kind] if apart else styles[str(group)]
        key = kind if many_kinds else values if apart else ""
        series = panels.setdefault(key, [])
        series.append(Series(label, *points, style, deviations=deviations))
        points = single["depth"].tolist(), single["train_error"].tolist()
        names = single["run"].tolist()
        series.append(Series("", *points, style._replace(line=""), strength=0.4, names=names))
    if many_kinds:
        panels = _beside_known(panels)
    return Chart(
        name="degradation",
        title="Training error against depth",
        caption="Error on the clean training split after the last step, in eval mode. Large marks"
        " are means over seeds, with the sample deviation if there are several seeds. Small marks"
        " are single runs.",
        x="depth (weighted layers)",
        y="training error",
        # A single network shows no change with depth.
        panels=tuple(Panel(title, tuple(series)) for title, series in panels.items())
        if len(summary) > 1
        else (),
        percent=True,
        ticks=tuple(sorted(int(depth) for depth in summary["depth"].unique())),
        seeds=seeds_of(runs[runs["state"] == "finished"]),
    )


def _beside_known(panels: dict[str, list[Series]]) -> dict[str, list[Series]]:
    """The panels of other kinds, each with the lines of `plain` and `residual` and in one style."""
    known = [replace(one, strength=0.5) for kind in KNOWN for one in panels.pop(kind, [])[:1]]
    look = KIND_STYLES[len(KNOWN)]
    found = {}
    for kind, (line, points) in panels.items():
        own = replace(line, style=look, label="the title's kind")
        found[kind] = [*known, own, replace(points, style=look._replace(line=""))]
    return found


def error_map(runs: pd.DataFrame, summary: pd.DataFrame, varied: Sequence[str]) -> Chart:
    """Training error by depth and one varied field. Empty if the grid does not vary both."""
    panels = []
    if len(varied) == 1 and summary[varied[0]].nunique() > 1 and summary["depth"].nunique() > 1:
        (field,) = varied
        depths, values = sorted(summary["depth"].unique()), list(summary[field].unique())
        for kind, rows in summary.groupby("kind", sort=False):
            table = rows.pivot(index=field, columns="depth", values="train_error")
            cells = table.reindex(index=values, columns=depths).to_numpy()
            found = Map(list(map(str, depths)), list(map(str, values)), list(map(numbers, cells)))
            panels.append(Panel(str(kind), field=found))
    return Chart(
        name="map",
        title=f"Training error by depth and {', '.join(varied)}",
        caption="Error on the clean training split after the last step, in eval mode: means over"
        " seeds.",
        x="depth (weighted layers)",
        y=", ".join(varied),
        panels=tuple(panels),
        percent=True,
        seeds=seeds_of(runs[runs["state"] == "finished"]),
    )


def curves(records: pd.DataFrame) -> Chart:
    """Error against steps as in Fig. 6, means over seeds: a panel for each group."""
    chart = _curves(_means(records), "means over seeds; bands: sample deviation")
    return replace(chart, seeds=seeds_of(records))


def curves_by_depth(records: pd.DataFrame, groups: Mapping[str, str]) -> Chart:
    """Error against steps as in Fig. 4, means over seeds: the kinds of a depth share a panel.

    `groups`: group -> kind, in the order of the grid. Without panels if there is only one kind.
    """
    means = _means(records)
    kinds = means["group"].map(groups)
    styles = group_styles({kind: kind for kind in groups.values()})
    panels: dict[str, list[Series]] = {}
    for depth, of_depth in means.groupby("depth"):
        for group, kind in groups.items() if kinds.nunique() > 1 else ():
            values = group.removeprefix(kind)  # Those of the varied fields, after a comma.
            rows = of_depth[of_depth["group"] == group]
            panel = panels.setdefault(f"depth {depth}{values}", [])
            panel += _pair(rows, kind, styles[kind].color, rank=list(styles).index(kind))
    return Chart(
        name="curves_by_depth",
        title="Training and test error against steps, by depth",
        caption="Dashed: running training error, in train mode. Solid: test error. Lines: means"
        " over seeds; bands: sample deviation.",
        x="step",
        y="error",
        panels=tuple(Panel(title, (*series, *_KEY)) for title, series in panels.items()),
        percent=True,
        seeds=seeds_of(records),
    )


def run_curves(records: pd.DataFrame) -> Chart:
    """Error against steps as in Fig. 6, with a line for each run."""
    return _curves(records, "one for each run")


_KEY = (
    Series("training, running", (), (), Style("#777777", "", "--"), rank=10_000),
    Series("test", (), (), Style("#777777", "", "-"), rank=10_001),
)
"""They explain the lines in the legend."""


def _means(records: pd.DataFrame) -> pd.DataFrame:
    keys = ["group", "depth", "measure", "step"]
    errors = records.groupby(keys, as_index=False, sort=False)["error"]
    means = errors.mean().assign(band=errors.std()["error"].fillna(0), run="")
    return means.sort_values("step", kind="stable")


def _curves(records: pd.DataFrame, what: str) -> Chart:
    colors = depth_colors(records["depth"])
    panels = []
    for group in records["group"].unique():
        lines = records[records["group"] == group].groupby(["depth", "run"])
        series = tuple(
            one
            for (depth, run), rows in lines
            for one in _pair(rows, f"depth {depth}", colors[depth], rank=depth, run=str(run))
        )
        panels.append(Panel(str(group), (*series, *_KEY)))
    return Chart(
        name="curves",
        title="Training and test error against steps",
        caption=f"Dashed: running training error, in train mode. Solid: test error. Lines: {what}.",
        x="step",
        y="error",
        panels=tuple(panels),
        percent=True,
    )


def _pair(
    rows: pd.DataFrame, label: str, color: str, *, rank: int, run: str = ""
) -> Iterator[Series]:
    """The test error and the running training error against steps, if there are any."""
    for measure, line in (("test_error", "-"), ("running_error", "--")):
        points = rows[rows["measure"] == measure]
        if not points.empty:
            x, y, style = points["step"].tolist(), numbers(points["error"]), Style(color, "", line)
            band = points["band"].tolist() if "band" in points and points["band"].any() else ()
            yield Series(label, x, y, style, band=band, run=run, rank=rank)


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
        for group, of_group in runs.groupby("group", sort=False):
            style = styles[str(group)]
            rows = of_group.dropna(subset=[measure])
            medians = rows.groupby("depth")[measure].median()
            series.append(Series(str(group), medians.index.tolist(), numbers(medians), style))
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
