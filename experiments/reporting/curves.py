"""Charts of error against steps, as in Fig. 4 and Fig. 6 of the paper."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pandas as pd

from experiments.reporting.chart import Chart, Panel, Series, numbers, seeds_of
from experiments.reporting.styling import Style, depth_colors, group_styles


def means(records: pd.DataFrame) -> Chart:
    """Error against steps as in Fig. 6, means over seeds: a panel for each group."""
    chart = _curves(_means(records), "means over seeds; bands: sample deviation")
    return replace(chart, seeds=seeds_of(_counted(records)))


def by_depth(records: pd.DataFrame, groups: Mapping[str, str]) -> Chart:
    """Error against steps as in Fig. 4, means over seeds: the kinds of a depth share a panel.

    `groups`: group -> kind, in the order of the grid. Without panels if there is only one kind.
    """
    averages = _means(records)
    kinds = averages["group"].map(groups)
    styles = group_styles({kind: kind for kind in groups.values()})
    panels: dict[str, list[Series]] = {}
    for depth, of_depth in averages.groupby("depth"):
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
        seeds=seeds_of(_counted(records)),
    )


def of_runs(records: pd.DataFrame) -> Chart:
    """Error against steps as in Fig. 6, with a line for each run."""
    return _curves(records, "one for each run")


_KEY = (
    Series("training, running", (), (), Style("#777777", "", "--"), rank=10_000),
    Series("test", (), (), Style("#777777", "", "-"), rank=10_001),
)
"""They explain the lines in the legend."""


def name_of(group: Any, depth: Any) -> Any:
    """The name of a mean curve, or of a column of them: `plain 56`."""
    return group + " " + (depth.astype(str) if isinstance(depth, pd.Series) else str(depth))


def _counted(records: pd.DataFrame) -> pd.DataFrame:
    """The records of finished runs; of all runs of a group and depth where none has finished."""
    ends = records.loc[records["measure"] == "train_error", "run"]  # Only a finished run has it.
    finished = records["run"].isin(ends)
    has_one = finished.groupby([records["group"], records["depth"]]).transform("any")
    return records[finished | ~has_one]


def _means(records: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds. A line ends where the first of its runs ends, so it has the same seeds."""
    keys, counted = ["group", "depth", "measure", "step"], _counted(records)
    runs = counted.groupby(keys[:2])["run"].transform("nunique")
    at_step = counted.groupby(keys)["run"].transform("nunique")
    errors = counted[at_step == runs].groupby(keys, as_index=False, sort=False)["error"]
    averages = errors.mean().assign(band=errors.std()["error"].fillna(0))
    averages["run"] = name_of(averages["group"], averages["depth"])
    return averages.sort_values("step", kind="stable")


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
