"""Reads a sweep's records into tables. Errors are fractions. It needs no JAX and no checkpoint."""

import math
from typing import Any, NamedTuple

import pandas as pd

from resnet_flax.storage import findings
from resnet_flax.storage.findings import Initial
from resnet_flax.storage.recipe import flat
from resnet_flax.storage.sweep_folder import SweepFolder
from resnet_flax.storage.sweep_tables import read_runs, summarize


class Tables(NamedTuple):
    """A sweep and the tables that the functions below read from its folder."""

    sweep: SweepFolder
    runs: pd.DataFrame
    summary: pd.DataFrame
    records: pd.DataFrame
    groups: dict[str, str]
    """Group -> kind, in the order of the grid."""
    configs: dict[str, dict[str, Any]]


def read(sweep: SweepFolder) -> Tables:
    """Reads all tables. Raises UserError if a file in the folder is damaged."""
    runs, records = read_runs(sweep), read_records(sweep)
    groups = read_groups(sweep)
    return Tables(
        sweep, runs, summarize(runs, sweep.varying.in_grid), records, groups, read_configs(sweep)
    )


def read_groups(sweep: SweepFolder) -> dict[str, str]:
    """Group -> kind, in the grid's order, of the runs and of networks measured before training."""
    groups = {point.group: point.kind for point in sweep.points.values()}
    initial = findings.load(sweep.path / findings.INITIAL, Initial)
    networks = initial.networks if initial else ()
    return {network.kind: network.kind for network in networks} | groups


def read_records(sweep: SweepFolder) -> pd.DataFrame:
    """All records of all runs, one row each.

    Columns: run, group, depth, seed, step, measure (one of `ERRORS`), error, images_per_second
    (only in train records).
    """
    names = ["run", "group", "depth", "seed", "step", "split"]
    frame = sweep.frame()
    frame["group"] = frame["run"].map({name: at.group for name, at in sweep.points.items()})
    by_metric = frame.drop_duplicates([*names, "metric"]).set_index([*names, "metric"])["value"]
    records = by_metric.unstack("metric", sort=False).reindex(
        columns=["error", "images_per_second"]
    )
    records = records.reset_index().rename_axis(columns=None)
    return records.assign(measure=records["split"] + "_error").drop(columns="split")


def read_configs(sweep: SweepFolder) -> dict[str, dict[str, Any]]:
    """Run name -> the run's config, flat: `{"model.depth": 20, ...}`."""
    return {name: flat(sweep.config(name)) for name in sweep}


def shortcuts(runs: pd.DataFrame, configs: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Kind -> the `model.shortcut` of its runs. "" if their block is not the paper's.

    Published errors are of the paper's block. Older configs have no other.
    """

    def shortcut(config: dict[str, Any]) -> str:
        is_papers = config.get("model.block", "postactivation") == "postactivation"
        return str(config.get("model.shortcut")) if is_papers else ""

    return {row.kind: shortcut(configs[row.run]) for row in runs.itertuples()}


def percent(mean: float | None, deviation: float | None = None) -> str:
    """Writes a fraction in per cent: `8.75 ± 0.12`, or `8.75` for one seed. A dash for None."""
    if mean is None or pd.isna(mean):
        return "–"
    return f"{100 * mean:.2f}" + _deviation(deviation)


def _deviation(deviation: float | None) -> str:
    return "" if deviation is None or pd.isna(deviation) else f" ± {100 * deviation:.2f}"


def minutes(mean: float) -> str:
    """Writes minutes, or a dash if they are not known."""
    return "–" if pd.isna(mean) else f"{mean:.{1 if mean >= 10 else 2}f}"


def costs(records: pd.DataFrame, batch_sizes: dict[str, int]) -> pd.DataFrame:
    """Time of each run that has at least two train records, one row each.

    Columns: run, group, depth, images_per_second (median after the first record), minutes (in
    training steps), startup_seconds (extra time of the first interval, compared with that pace).
    """
    rows = []
    rates = pd.to_numeric(records["images_per_second"], errors="coerce")
    possible = rates.between(1e-6, 1e12)
    timed = records.assign(images_per_second=rates)[possible]
    for (run, group, depth), of_run in timed.groupby(["run", "group", "depth"]):
        if len(of_run) < 2:
            continue
        size, rate = batch_sizes[run], of_run["images_per_second"]
        images = of_run["step"].diff().fillna(of_run["step"]) * size
        pace = rate.iloc[1:].median()
        startup = images.iloc[0] / rate.iloc[0] - images.iloc[0] / pace
        rows.append((run, group, depth, pace, (images / rate).sum() / 60, max(startup, 0.0)))
    names = ["run", "group", "depth", "images_per_second", "minutes", "startup_seconds"]
    return pd.DataFrame(rows, columns=names)


def readings(summary: pd.DataFrame) -> list[dict[str, Any]]:
    """For each group: the smallest and the largest finished depth, and the change between them."""
    readings = []
    for group, rows in summary.groupby("group", sort=False):
        ends = rows.sort_values("depth").iloc[[0, -1]]
        change = _change(ends["train_error"].tolist(), ends["train_error_std"].max(skipna=False))
        shown = ends.drop_duplicates("depth").to_dict("records")
        readings.append({"group": group, "ends": shown, "change": change})
    return readings


def _change(errors: list[float], deviation: float) -> str:
    """Describes the change in words. One seed shows no rise and no fall.

    `deviation`: the larger one of both ends; NaN if an end has one seed.
    """
    points = 100 * (errors[-1] - errors[0])
    if math.isnan(deviation):
        return f"one seed: {points:+.2f} points"
    if f"{abs(points):.2f}" == "0.00":
        return "does not change"
    if abs(points) <= 100 * deviation:
        return "no clear change"
    return f"{'rises' if points > 0 else 'falls'} by {abs(points):.2f} points"
