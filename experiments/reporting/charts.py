"""The charts of a sweep's errors and costs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import pandas as pd

from experiments.reporting.chart import Chart, Map, Panel, Series, numbers, seeds_of
from experiments.reporting.styling import (
    COLORS,
    KIND_STYLES,
    KNOWN,
    Style,
    Styles,
    depth_colors,
    group_styles,
)


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


def _counts(n: pd.Series) -> str:
    return f"{n.min()}" if n.min() == n.max() else f"{n.min()} to {n.max()}"
