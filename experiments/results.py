"""Reads a sweep's records into tables. Errors are fractions; no JAX, no checkpoint needed."""

import re
from pathlib import Path
from typing import Any

import pandas as pd

from resnet_flax.errors import UserError
from resnet_flax.records import RunFolder, read_json

ERRORS = ("train_error", "running_error", "test_error")


def read_runs(workdir: Path) -> pd.DataFrame:
    """One row a run of the grid, whatever has become of it.

    Columns: run, kind, depth, seed, state, step, parameters, and of finished runs `train_error`
    (clean training split, eval mode), `running_error` (last interval, augmented, train mode) and
    `test_error`; a finished run that lacks one of them is `incomplete`. Raises UserError if the
    folder is no sweep's.
    """
    grid = read_grid(workdir)
    return pd.DataFrame([_row(workdir / name, entry) for name, entry in grid.items()])


def read_grid(workdir: Path) -> dict[str, Any]:
    """Run name -> {"kind", "config"}. Raises UserError if the folder is no sweep's."""
    path = workdir / "sweep.json"
    if not path.exists():
        raise UserError(f"Expected a sweep's folder, got {workdir}: it has no sweep.json.")
    grid = read_json(path)
    runs = grid.get("runs") if isinstance(grid, dict) else None
    if not isinstance(runs, dict) or not all(map(_is_entry, runs.values())):
        raise UserError(f'Expected {{"runs": {{name: {{"kind", "config"}}}}}} in {path}.')
    for name in runs:
        if not re.fullmatch(r"\w[\w.-]*", name):  # It becomes a folder's name.
            raise UserError(f"Expected names of letters, digits, - and _ in {path}, got {name!r}.")
    return runs


def _is_entry(entry: Any) -> bool:
    try:
        return isinstance(entry["kind"], str) and {
            type(entry["config"]["seed"]),
            type(entry["config"]["model"]["depth"]),
        } == {int}
    except (KeyError, TypeError):
        return False


def _row(path: Path, entry: dict[str, Any]) -> dict[str, Any]:
    folder = RunFolder(path)
    status = folder.status()
    row = _names(folder, entry)
    row["state"] = status.state if status else "not begun"
    row["step"] = status.step if status else 0
    environments = folder.environments()
    row["parameters"] = environments[-1].get("parameters") if environments else None
    finals = final_errors(folder) if row["state"] == "finished" else {}
    if row["state"] == "finished" and finals.keys() != set(ERRORS):
        row["state"] = "incomplete"
    return row | {name: finals.get(name) for name in ERRORS}


def _names(folder: RunFolder, entry: dict[str, Any]) -> dict[str, Any]:
    config = entry["config"]
    depth, seed = config["model"]["depth"], config["seed"]
    return {"run": folder.name, "kind": entry["kind"], "depth": depth, "seed": seed}


def final_errors(folder: RunFolder) -> dict[str, float]:
    """The last error of each kind of a run, by the names in `ERRORS`."""
    return {_error_name(record): record.get("error") for record in folder.metrics()}


def _error_name(record: dict[str, Any]) -> str:
    return f"{record.get('split', 'running')}_error"


def read_curves(workdir: Path) -> pd.DataFrame:
    """All records, one row each: run, kind, depth, seed, step, measure (of `ERRORS`), error."""
    rows = []
    for name, entry in read_grid(workdir).items():
        folder = RunFolder(workdir / name)
        for record in folder.metrics():
            measured = {"measure": _error_name(record), "error": record.get("error")}
            rows.append(_names(folder, entry) | {"step": record["step"]} | measured)
    columns = ["run", "kind", "depth", "seed", "step", "measure", "error"]
    return pd.DataFrame(rows, columns=columns)


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
