"""Tables of a sweep: its runs, and the means over their seeds. Errors are fractions. No JAX."""

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from resnet_flax.storage.lock import Heartbeat
from resnet_flax.storage.records import series_of
from resnet_flax.storage.run_folder import RunFolder
from resnet_flax.storage.sweep_folder import GridPoint, SweepFolder

ERRORS = ("train_error", "running_error", "test_error")


def read_runs(sweep: SweepFolder) -> pd.DataFrame:
    """One row for each run of the grid, in any state.

    Columns: run, group, kind, one for each field that varies in the grid, depth, seed, state, step,
    reason (a failure's message, or ""), parameters, and for finished runs minutes (wall time) and
    the errors:

    - `train_error`: clean training split, eval mode.
    - `running_error`: last interval, augmented images, train mode.
    - `test_error`: test split, eval mode.

    A finished run that lacks one of the errors, or its parameters, is `incomplete`. So is one whose
    records have changed since it ended: `reason` says so. A running one
    on which no process works any more is `interrupted`.
    """
    rows = [_row(sweep.records(name), sweep.points[name]) for name in sweep]
    return pd.DataFrame(rows).astype({"parameters": "Int64"})  # Whole also where one is missing.


def _row(folder: RunFolder, point: GridPoint) -> dict[str, Any]:
    status = folder.status()
    row: dict[str, Any] = {"run": point.name, "group": point.group, "kind": point.kind}
    row |= {**point.varied, "depth": point.depth, "seed": point.seed}
    row["state"] = status.state if status else "not begun"
    if row["state"] == "running" and not Heartbeat(folder.path).is_alive():
        row["state"] = "interrupted"
    row["step"] = status.step if status else 0
    changed = folder.changed(status) if status else None
    row["reason"] = changed or (status.error or "" if status else "")
    environments = folder.environments()
    row["parameters"] = environments[-1].get("parameters") if environments else None
    finals = _final_errors(folder) if row["state"] == "finished" and not changed else {}
    known = [row["parameters"], *(finals.get(name) for name in ERRORS)]
    if row["state"] == "finished" and None in known:
        row["state"] = "incomplete"
    row |= {name: finals.get(name) for name in ERRORS}
    seconds = folder.wall_seconds(status)
    return row | {"minutes": math.nan if seconds is None else seconds / 60}


def _final_errors(folder: RunFolder) -> dict[str, float | None]:
    """The last value of each error of a run, by the names in `ERRORS`."""
    return {f"{series_of(record)}_error": record.get("error") for record in folder.metrics()}


def summarize(runs: pd.DataFrame, varied: Sequence[str] = ()) -> pd.DataFrame:
    """Means over the seeds of finished runs, one row for each group and depth.

    `varied`: the fields that vary in the grid.

    Kinds and varied values are in the order of the grid. Columns: kind, one for each varied field,
    depth, parameters, n, for each of `ERRORS` the mean and `_std` (sample deviation, ddof 1; absent
    for one seed), minutes (mean of the known ones) and group.
    """
    columns: dict[str, Any] = {"parameters": ("parameters", "first"), "n": ("run", "count")}
    for name in ERRORS:
        columns |= {name: (name, "mean"), f"{name}_std": (name, "std")}
    columns |= {"minutes": ("minutes", "mean"), "group": ("group", "first")}
    keys = ["kind", *varied]
    places = {key: {value: i for i, value in enumerate(runs[key].unique())} for key in keys}
    summary = (
        runs[runs["state"] == "finished"]
        .groupby([*keys, "depth"], as_index=False, sort=False, dropna=False)
        .agg(**columns)
    )
    return summary.sort_values(
        [*keys, "depth"], key=lambda of: of.map(places.get(of.name)) if of.name in places else of
    ).reset_index(drop=True)
