"""Reads a sweep's records into tables. Errors are fractions. It needs no JAX and no checkpoint."""

import math
from typing import Any, NamedTuple

import pandas as pd

from resnet_flax.storage import findings
from resnet_flax.storage.findings import Initial
from resnet_flax.storage.recipe import flat
from resnet_flax.storage.records import series_of
from resnet_flax.storage.run_folder import RunFolder
from resnet_flax.storage.sweep_folder import GridPoint, SweepFolder

ERRORS = ("train_error", "running_error", "test_error")


class Tables(NamedTuple):
    """A sweep and the tables that the functions below read from its folder."""

    sweep: SweepFolder
    runs: pd.DataFrame
    summary: pd.DataFrame
    records: pd.DataFrame
    kinds: list[str]
    configs: dict[str, dict[str, Any]]


def read(sweep: SweepFolder) -> Tables:
    """Reads all tables. Raises UserError if a file in the folder is damaged."""
    runs, records = read_runs(sweep), read_records(sweep)
    return Tables(sweep, runs, summarize(runs), records, read_kinds(sweep), read_configs(sweep))


def read_kinds(sweep: SweepFolder) -> list[str]:
    """The kinds of the sweep's runs and of the networks measured before training, sorted."""
    initial = findings.load(sweep.path / findings.INITIAL, Initial)
    networks = initial.networks if initial else ()
    kinds = {point.kind for point in sweep.points.values()}
    return sorted(kinds | {network.kind for network in networks})


def read_runs(sweep: SweepFolder) -> pd.DataFrame:
    """One row for each run of the grid, in any state.

    Columns: run, kind, depth, seed, state, step, reason (a failure's message, or ""), parameters,
    and for finished runs minutes (wall time) and the errors:

    - `train_error`: clean training split, eval mode.
    - `running_error`: last interval, augmented images, train mode.
    - `test_error`: test split, eval mode.

    A finished run that lacks one of the errors, or its parameters, is `incomplete`.
    """
    return pd.DataFrame([_row(sweep.records(name), sweep.points[name]) for name in sweep])


def _row(folder: RunFolder, point: GridPoint) -> dict[str, Any]:
    status = folder.status()
    row: dict[str, Any] = {"run": point.name, "kind": point.kind}
    row |= {"depth": point.depth, "seed": point.seed}
    row["state"] = status.state if status else "not begun"
    row["step"] = status.step if status else 0
    row["reason"] = (status.error or "") if status else ""
    environments = folder.environments()
    row["parameters"] = environments[-1].get("parameters") if environments else None
    finals = _final_errors(folder) if row["state"] == "finished" else {}
    known = [row["parameters"], *(finals.get(name) for name in ERRORS)]
    if row["state"] == "finished" and None in known:
        row["state"] = "incomplete"
    row |= {name: finals.get(name) for name in ERRORS}
    seconds = folder.wall_seconds(status)
    return row | {"minutes": math.nan if seconds is None else seconds / 60}


def _final_errors(folder: RunFolder) -> dict[str, float | None]:
    """The last value of each error of a run, by the names in `ERRORS`."""
    return {f"{series_of(record)}_error": record.get("error") for record in folder.metrics()}


def read_records(sweep: SweepFolder) -> pd.DataFrame:
    """All records of all runs, one row each.

    Columns: run, kind, depth, seed, step, measure (one of `ERRORS`), error, images_per_second (only
    in train records).
    """
    names = ["run", "kind", "depth", "seed", "step", "split"]
    frame = sweep.frame()
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

    Columns: run, kind, depth, images_per_second (median after the first record), minutes (in
    training steps), startup_seconds (extra time of the first interval, compared with that pace).
    """
    rows = []
    rates = pd.to_numeric(records["images_per_second"], errors="coerce")
    possible = rates.between(1e-6, 1e12)
    timed = records.assign(images_per_second=rates)[possible]
    for (run, kind, depth), of_run in timed.groupby(["run", "kind", "depth"]):
        if len(of_run) < 2:
            continue
        size, rate = batch_sizes[run], of_run["images_per_second"]
        images = of_run["step"].diff().fillna(of_run["step"]) * size
        pace = rate.iloc[1:].median()
        startup = images.iloc[0] / rate.iloc[0] - images.iloc[0] / pace
        rows.append((run, kind, depth, pace, (images / rate).sum() / 60, max(startup, 0.0)))
    names = ["run", "kind", "depth", "images_per_second", "minutes", "startup_seconds"]
    return pd.DataFrame(rows, columns=names)


def summarize(runs: pd.DataFrame) -> pd.DataFrame:
    """Means over the seeds of finished runs, one row for each kind and depth.

    Columns: kind, depth, parameters, n, minutes (mean of the known ones), and for each of `ERRORS`
    the mean and `_std` (sample deviation, ddof 1; absent for one seed).
    """
    finished = runs[runs["state"] == "finished"]
    columns: dict[str, Any] = {"parameters": ("parameters", "first"), "n": ("run", "count")}
    for name in ERRORS:
        columns |= {name: (name, "mean"), f"{name}_std": (name, "std")}
    columns["minutes"] = ("minutes", "mean")
    return finished.groupby(["kind", "depth"], as_index=False).agg(**columns)
