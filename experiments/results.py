"""Reads a sweep's records into tables. Errors are fractions; no JAX, no checkpoint needed."""

from pathlib import Path
from typing import Any

import pandas as pd

from resnet_flax.records import RunFolder
from resnet_flax.sweeps import GridPoint, SweepFolder

ERRORS = ("train_error", "running_error", "test_error")


def read_runs(workdir: Path) -> pd.DataFrame:
    """One row a run of the grid, whatever has become of it.

    Columns: run, kind, depth, seed, state, step, parameters, and of finished runs `train_error`
    (clean training split, eval mode), `running_error` (last interval, augmented, train mode) and
    `test_error`; a finished run that lacks one of them is `incomplete`. Raises UserError if the
    folder is no sweep's.
    """
    sweep = SweepFolder(workdir)
    return pd.DataFrame([_row(sweep.records(name), sweep.points[name]) for name in sweep])


def _row(folder: RunFolder, point: GridPoint) -> dict[str, Any]:
    status = folder.status()
    row: dict[str, Any] = {"run": point.name, "kind": point.kind}
    row |= {"depth": point.depth, "seed": point.seed}
    row["state"] = status.state if status else "not begun"
    row["step"] = status.step if status else 0
    environments = folder.environments()
    row["parameters"] = environments[-1].get("parameters") if environments else None
    finals = _final_errors(folder) if row["state"] == "finished" else {}
    known = [row["parameters"], *(finals.get(name) for name in ERRORS)]
    if row["state"] == "finished" and None in known:
        row["state"] = "incomplete"
    return row | {name: finals.get(name) for name in ERRORS}


def _final_errors(folder: RunFolder) -> dict[str, float]:
    """The last error of each kind of a run, by the names in `ERRORS`."""
    return {
        f"{record.get('split', 'running')}_error": record.get("error")
        for record in folder.metrics()
    }


def read_curves(workdir: Path) -> pd.DataFrame:
    """All errors, one row each: run, kind, depth, seed, step, measure (of `ERRORS`), error."""
    frame = SweepFolder(workdir).frame()
    errors = frame[frame["metric"] == "error"].rename(columns={"value": "error"})
    errors["measure"] = errors["split"] + "_error"
    return errors.drop(columns=["split", "metric"])


def summarize(runs: pd.DataFrame) -> pd.DataFrame:
    """Over the seeds of finished runs: one row a kind and depth.

    Columns: kind, depth, parameters, n, and for each of `ERRORS` its mean and `_std` (the sample's
    deviation, ddof 1; absent for one seed).
    """
    finished = runs[runs["state"] == "finished"]
    columns: dict[str, Any] = {"parameters": ("parameters", "first"), "n": ("run", "count")}
    for name in ERRORS:
        columns |= {name: (name, "mean"), f"{name}_std": (name, "std")}
    return finished.groupby(["kind", "depth"], as_index=False).agg(**columns)
