"""Reads a sweep's records into tables. Errors are fractions; no JAX, no checkpoint needed."""

from pathlib import Path
from typing import Annotated, Any, NamedTuple

import pandas as pd
import pydantic
from pydantic import Field

from resnet_flax.errors import UserError
from resnet_flax.records import RunFolder, read_json

ERRORS = ("train_error", "running_error", "test_error")
# A kind becomes part of a folder's name, and a run's name is one: neither leads out of the sweep's.
KindName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+$")]
RunName = Annotated[str, Field(pattern=r"^\w[\w.\-]*$")]


class _Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True)


class _Model(_Strict):
    depth: Annotated[int, Field(ge=1, lt=2**31)]


class _Config(_Strict):
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    model: _Model


class _Entry(_Strict):
    kind: KindName
    config: _Config


class _Grid(_Strict):
    """What a report relies on in a sweep.json."""

    runs: Annotated[dict[RunName, _Entry], Field(min_length=1)]


class Tables(NamedTuple):
    """What the functions below read from a sweep's folder."""

    runs: pd.DataFrame
    summary: pd.DataFrame
    records: pd.DataFrame


def read(workdir: Path) -> Tables:
    """All tables. Raises UserError if the folder is no sweep's, or a file of it is damaged."""
    runs = read_runs(workdir)
    return Tables(runs, summarize(runs), read_records(workdir))


def read_runs(workdir: Path) -> pd.DataFrame:
    """One row a run of the grid, whatever has become of it.

    Columns: run, kind, depth, seed, state, step, reason (what a failure said, or ""), parameters,
    and of finished runs `train_error` (clean training split, eval mode), `running_error` (last
    interval, augmented, train mode) and `test_error`; a finished run that lacks
    one of them is `incomplete`. Raises UserError if the folder is no sweep's.
    """
    grid = read_grid(workdir)
    return pd.DataFrame([_row(workdir / name, entry) for name, entry in grid.items()])


def read_grid(workdir: Path) -> dict[str, Any]:
    """Run name -> {"kind", "config"}. Raises UserError if the folder is no sweep's."""
    path = workdir / "sweep.json"
    if not path.exists():
        raise UserError(f"Expected a sweep's folder, got {workdir}: it has no sweep.json.")
    grid = read_json(path)
    try:
        _Grid.model_validate(grid)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise UserError(f"Cannot use {path}: {field!r}: {first['msg']}.") from error
    return grid["runs"]


def _row(path: Path, entry: dict[str, Any]) -> dict[str, Any]:
    folder = RunFolder(path)
    status = folder.status()
    row = _names(folder, entry)
    row["state"] = status.state if status else "not begun"
    row["step"] = status.step if status else 0
    row["reason"] = (status.error or "") if status else ""
    environments = folder.environments()
    row["parameters"] = environments[-1].get("parameters") if environments else None
    finals = final_errors(folder) if row["state"] == "finished" else {}
    known = [row["parameters"], *(finals.get(name) for name in ERRORS)]
    if row["state"] == "finished" and None in known:
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


def read_records(workdir: Path) -> pd.DataFrame:
    """All records of all runs, one row each.

    Columns: run, kind, depth, seed, step, measure (of `ERRORS`), error, images_per_second (of train
    records, as it stands there).
    """
    rows = []
    for name, entry in read_grid(workdir).items():
        folder = RunFolder(workdir / name)
        names = _names(folder, entry)
        for record in folder.metrics():
            measured = {"measure": _error_name(record), "error": record.get("error")}
            rate = {"images_per_second": record.get("images_per_second")}
            rows.append(names | {"step": record["step"]} | measured | rate)
    columns = ["run", "kind", "depth", "seed", "step", "measure", "error", "images_per_second"]
    return pd.DataFrame(rows, columns=columns)


def read_configs(workdir: Path) -> dict[str, dict[str, Any]]:
    """Run name -> its config, flat: `{"model.depth": 20, ...}`."""
    return {name: flat(entry["config"]) for name, entry in read_grid(workdir).items()}


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested objects as one, with dotted names."""
    fields = {}
    for key, value in config.items():
        inner = isinstance(value, dict) and value
        fields |= flat(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return fields


def costs(records: pd.DataFrame, batch_sizes: dict[str, Any]) -> pd.DataFrame:
    """What runs took, from their train records: one row for each that has at least two.

    Columns: run, kind, depth, images_per_second (median after the first record), minutes (in
    training steps), startup_seconds (of the first interval, beyond that pace).
    """
    rows = []
    rates = pd.to_numeric(records["images_per_second"], errors="coerce")
    possible = rates.between(1e-6, 1e12)
    timed = records.assign(images_per_second=rates)[possible]
    for (run, kind, depth), of_run in timed.groupby(["run", "kind", "depth"]):
        size, rate = batch_sizes.get(run), of_run["images_per_second"]
        if len(of_run) < 2 or not isinstance(size, int) or not 0 < size < 2**31:
            continue
        images = of_run["step"].diff().fillna(of_run["step"]) * size
        pace = rate.iloc[1:].median()
        startup = images.iloc[0] / rate.iloc[0] - images.iloc[0] / pace
        rows.append((run, kind, depth, pace, (images / rate).sum() / 60, max(startup, 0.0)))
    names = ["run", "kind", "depth", "images_per_second", "minutes", "startup_seconds"]
    return pd.DataFrame(rows, columns=names)


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
