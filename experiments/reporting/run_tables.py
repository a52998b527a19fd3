"""Reads a sweep's records into tables. Errors are fractions. It needs no JAX and no checkpoint."""

import itertools
import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import pandas as pd

from resnet_flax.storage import findings
from resnet_flax.storage.recipe import flat
from resnet_flax.storage.sweep_folder import SweepFolder
from resnet_flax.storage.sweep_tables import read_runs, summarize

_IMAGES = ("name", "train_split", "test_split")  # Fields of `data` that choose the images.


class Tables(NamedTuple):
    """A sweep and the tables that the functions below read from its folder."""

    sweep: SweepFolder
    runs: pd.DataFrame
    summary: pd.DataFrame
    records: pd.DataFrame
    groups: dict[str, str]
    """Group -> kind, in the order of the grid."""
    configs: dict[str, dict[str, Any]]
    notes: list[str]
    """Lines on what the means leave out, and on what differs between the runs in them."""


def read(sweep: SweepFolder) -> Tables:
    """Reads all tables. Raises UserError if a file in the folder is damaged."""
    runs, configs = read_runs(sweep), read_configs(sweep)
    summary = summarize(runs, sweep.varying.in_grid)
    finished = runs.loc[runs["state"] == "finished", "run"]
    notes = [*sweep.apart, *_diverged(runs)]
    notes += _unlike({name: sweep.records(name).environments() for name in finished}, configs)
    records = read_records(sweep)
    return Tables(sweep, runs, summary, records, read_groups(sweep), configs, notes)


def _diverged(runs: pd.DataFrame) -> list[str]:
    """A line that names the networks of which runs diverged."""
    found = [
        f"{group}, {depth} layers ({(states == 'diverged').sum()} of {len(states)})"
        for (group, depth), states in runs.groupby(["group", "depth"], sort=False)["state"]
        if (states == "diverged").any()
    ]
    return [f"Diverged, in no mean: {'; '.join(found)}."] if found else []


def _unlike(
    environments: Mapping[str, list[dict[str, Any]]], configs: Mapping[str, dict[str, Any]]
) -> list[str]:
    """Lines on runs that count as seeds of one network, though they had other BN or other images.

    `environments`: of the attempts of each run that is in a mean.
    """
    last = {name: attempts[-1] for name, attempts in environments.items() if attempts}
    images: dict[tuple[Any, ...], set[str]] = {}
    for name, at in last.items():
        if at.get("images"):  # Runs of older versions recorded none.
            named = tuple(configs[name].get(f"data.{field}") for field in _IMAGES)
            images.setdefault(named, set()).add(json.dumps(at["images"], sort_keys=True))
    own = (
        at.get("device_count")
        for name, attempts in environments.items()
        for at in _trained(attempts, configs[name].get("steps", math.inf))
        if configs[name].get("model.family") != "vgg"
        and configs[name].get("model.norm", "batch") == "batch"
        and configs[name].get("model.bn_scope", "device") == "device"
    )
    counts = sorted({str(count) for count in own if count}, key=lambda count: (len(count), count))
    differ = any(len(found) > 1 for found in images.values())
    lines = ["These runs were trained on different images of one name."] * differ
    if len(counts) > 1:
        lines.append(
            f"These runs had {', '.join(counts[:-1])} or {counts[-1]} devices. Each device"
            " normalises its own share of the batch, so they are different experiments."
        )
    return lines


def _trained(attempts: list[dict[str, Any]], steps: float) -> list[dict[str, Any]]:
    """The attempts that took some of a run's steps, of `steps` in all.

    Not those after which it began there again, nor one that only evaluated.
    """
    found: list[dict[str, Any]] = []
    least = steps
    for at in reversed(attempts):
        begin = at.get("step")
        if begin is None:  # Older versions did not record it: only the last attempt is sure.
            return found or [at]
        if begin < least:
            found.append(at)
            least = begin
    return found


def read_groups(sweep: SweepFolder) -> dict[str, str]:
    """Group -> kind, in the grid's order, of the runs and of networks measured before training."""
    groups = {point.group: point.kind for point in sweep.points.values()}
    networks = findings.load_initial(sweep.path)
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
        first, last = rows.sort_values("depth").iloc[[0, -1]].to_dict("records")
        shown = [first, last] if len(rows) > 1 else [last]
        readings.append({"group": group, "ends": shown, "change": _change(first, last)})
    return readings


LEVEL = 0.05
"""Of Welch's t-test: how often a change is claimed where there is none."""


def _change(first: Mapping[str, Any], last: Mapping[str, Any]) -> str:
    """Describes the change between two rows of a summary in words.

    A rise or a fall is claimed if Welch's t-test tells the two means apart at `LEVEL`. Otherwise it
    stays open: two seeds that differ by 15 points leave 81 open. One seed shows neither.
    """
    # It takes half a second to import, and a sweep needs it at its end only.
    from scipy.stats import ttest_ind_from_stats

    points = 100 * (last["train_error"] - first["train_error"])
    single = [end["depth"] for end in (first, last) if end["n"] == 1]
    if single:
        where = "" if len(single) == 2 else f" at {single[0]} layers"
        return f"one seed{where}: {points:+.2f} points"
    if f"{abs(points):.2f}" == "0.00":
        return "does not change"
    sides = ((end["train_error"], end["train_error_std"], end["n"]) for end in (first, last))
    if ttest_ind_from_stats(*itertools.chain(*sides), equal_var=False).pvalue > LEVEL:
        n = " and ".join(str(n) for n in sorted({first["n"], last["n"]}))
        return f"{points:+.2f} points, but {n} seeds leave it open"
    return f"{'rises' if points > 0 else 'falls'} by {abs(points):.2f} points"
