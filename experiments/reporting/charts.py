"""The charts of a sweep's errors and costs."""

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from experiments.reporting.chart import MOST_LINES, Chart, Map, Panel, Series, numbers, seeds_of
from experiments.reporting.styling import (
    COLORS,
    KIND_STYLES,
    KNOWN,
    Styles,
    group_styles,
)


def degradation(
    runs: pd.DataFrame, summary: pd.DataFrame, styles: Styles, varied: Sequence[str] = ()
) -> Chart:
    """Training error (clean, eval mode) against depth: means, deviations, single runs.

    `varied`: the fields that vary in the grid. Several kinds then get a panel for each combination
    of values. A single kind has one panel, with a line for each combination, unless these are too
    many. More kinds than there are colours get a panel each, beside `plain` and `residual`.
    """
    many_kinds = not varied and summary["kind"].nunique() > len(COLORS)
    groups, kinds = summary["group"].nunique(), summary["kind"].nunique()
    apart = bool(varied) and (kinds > 1 or groups > MOST_LINES)
    panels: dict[str, list[Series]] = {}
    of_kind = group_styles({kind: kind for kind in summary["kind"]})
    for group, rows in summary.groupby("group", sort=False):
        single = runs[(runs["group"] == group) & (runs["state"] == "finished")]
        kind, values = rows["kind"].iloc[0], str(group)
        values = values.removeprefix(f"{kind}, ")
        name = values if varied and not apart else kind
        many = bool(rows["train_error_std"].notna().any())  # One run has no deviation.
        label = f"{name} ({'mean ± deviation, ' if many else ''}n = {_counts(rows['n'])})"
        deviations = numbers(rows["train_error_std"]) if many else []
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
        left_out=_diverged(runs),
    )


def _beside_known(panels: dict[str, list[Series]]) -> dict[str, list[Series]]:
    """The panels of other kinds, each with the lines of `plain` and `residual` and in one style."""
    known = [replace(one, strength=0.5) for kind in KNOWN for one in panels.pop(kind, [])[:1]]
    look = KIND_STYLES[len(KNOWN)]
    found = {}
    for line, points in panels.values():
        own = replace(line, style=look, label="the title's kind")
        title = line.label.replace("mean ± deviation, ", "")
        found[title] = [*known, own, replace(points, style=look._replace(line=""))]
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
        left_out=_diverged(runs),
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


def _diverged(runs: pd.DataFrame) -> str:
    """Says how many runs have no error to show."""
    count = int((runs["state"] == "diverged").sum())
    return f"{count} diverged run{'s' * (count > 1)} not shown" if count else ""


def _counts(n: pd.Series) -> str:
    return f"{n.min()}" if n.min() == n.max() else f"{n.min()} to {n.max()}"
