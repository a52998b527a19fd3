"""Tables of the READMEs from the records of training: errors, times, gradients."""

import math
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.reporting import diagnostic_tables, published, run_tables
from resnet_flax.storage import findings, sweep_tables
from resnet_flax.storage.records import series_of
from resnet_flax.storage.run_folder import RunFolder
from resnet_flax.storage.sweep_folder import SweepFolder

RESULTS = Path("experiments/results")
KINDS = ("plain", "residual")
NONE = "–"
Rows = list[dict[str, Any]]


def summary(sweep: str) -> pd.DataFrame:
    """Mean and deviation of each error over the seeds, by (kind, depth)."""
    runs = sweep_tables.read_runs(SweepFolder(RESULTS / sweep))
    return sweep_tables.summarize(runs).set_index(["kind", "depth"])


def _error(table: pd.DataFrame, kind: str, depth: int, name: str = "train_error") -> str:
    """An error in per cent; a dash if there is no such run."""
    if (kind, depth) not in table.index:
        return NONE
    row = table.loc[(kind, depth)]
    return run_tables.percent(row[name], row[f"{name}_std"])


def sweeps() -> Rows:
    """One row for each folder of records."""
    rows = []
    for file in sorted(RESULTS.glob("*/sweep.json")):
        folder, name = SweepFolder(file.parent), file.parent.name
        first = folder.config(next(iter(folder)))
        states = sweep_tables.read_runs(folder)["state"]
        steps = sorted({folder.config(name)["steps"] for name in folder})
        rows.append(
            {
                "folder": f"[{name}]({name})",
                "data": first["data"]["name"],
                "steps": " or ".join(f"{count:,}" for count in steps),
                "depths": ", ".join(map(str, sorted({p.depth for p in folder.points.values()}))),
                "seeds": len({point.seed for point in folder.points.values()}),
                "dtype": first["model"]["dtype"],
                "BN": "yes" if first["model"].get("norm", "batch") == "batch" else "no",
                "runs": len(folder),
                "ended": int(states.isin(["finished", "diverged"]).sum()),
            }
        )
    return rows


def training_errors() -> Rows:
    """Training error by depth, on digits and on CIFAR-10."""
    tables = {"digits": summary("digits"), "CIFAR-10": summary("cifar10_short")}
    depths = sorted({depth for table in tables.values() for _, depth in table.index})
    return [
        {"depth": depth}
        | {
            f"{data}, {kind}": _error(table, kind, depth)
            for data, table in tables.items()
            for kind in KINDS
        }
        for depth in depths
    ]


def by_depth(sweep: str, measure: str = "train_error") -> Rows:
    """An error by depth: a row for each kind and combination of varied values."""
    folder = SweepFolder(RESULTS / sweep)
    table = sweep_tables.summarize(sweep_tables.read_runs(folder), folder.varying.in_grid)
    rows = []
    for _, of_group in table.groupby("group", sort=False):
        cells = of_group.set_index("depth")
        row = {name: str(of_group[name].iloc[0]) for name in ("kind", *folder.varying.in_grid)}
        for depth in sorted(table["depth"].unique()):
            there = cells.loc[depth] if depth in cells.index else {}
            error = run_tables.percent(there.get(measure), there.get(f"{measure}_std"))
            row[f"{depth} layers"] = error
        counts = sorted(set(of_group["n"]))
        rows.append(row | {"n": counts[0] if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"})
    return rows


def trained_networks() -> Rows:
    """One row for each finished run whose checkpoint comes with the repository."""
    rows = []
    for checkpoint in sorted(RESULTS.glob("*/*/checkpoints/*")):
        path = checkpoint.parent.parent
        folder = RunFolder(path)
        status, data = folder.status(), folder.config()["data"]["name"]
        if status is None or status.state != "finished":
            continue
        last = {series_of(record): record["error"] for record in folder.metrics()}
        size = sum(file.stat().st_size for file in checkpoint.rglob("*") if file.is_file())
        rows.append(
            {
                "network": folder.name,
                "data": data,
                "steps": f"{status.step:,}",
                "training error": run_tables.percent(last["train"]),
                "test error": run_tables.percent(last["test"]),
                "MB": f"{size / 1e6:.1f}",
                "to load it": f'`load_run("{path}")`',
            }
        )
    return rows


def elsewhere(measure: str) -> Rows:
    """An error on digits on two processors and in bfloat16. Differences are in standard errors."""
    epyc, xeon, low = (summary(name) for name in ("digits", "digits_xeon", "digits_bfloat16"))
    return [
        {
            "network": f"{kind} {depth}",
            "AMD EPYC": _error(epyc, kind, depth, measure),
            "Intel Xeon": _error(xeon, kind, depth, measure),
            "Intel Xeon, bfloat16": _error(low, kind, depth, measure),
            "by processor": _difference(epyc, xeon, kind, depth, measure),
            "by bfloat16": _difference(xeon, low, kind, depth, measure),
        }
        for kind, depth in epyc.index
    ]


def _difference(one: pd.DataFrame, other: pd.DataFrame, kind: str, depth: int, measure: str) -> str:
    """The difference of two means, in its standard errors; a dash if that is 0 or not known."""
    a, b = one.loc[(kind, depth)], other.loc[(kind, depth)]
    error = math.sqrt(sum(side[f"{measure}_std"] ** 2 / side["n"] for side in (a, b)))
    return f"{abs(a[measure] - b[measure]) / error:.1f}" if error > 0 else NONE


def single_runs(sweep: str) -> Rows:
    """Training error of each network of a sweep, and the number of its runs that diverged."""
    rows = []
    for (kind, depth), group in sweep_tables.read_runs(SweepFolder(RESULTS / sweep)).groupby(
        ["kind", "depth"]
    ):
        errors = group["train_error"].astype(float)
        diverged = group[group["state"] == "diverged"]
        rows.append(
            {
                "network": f"{kind} {depth}",
                "training error": run_tables.percent(errors.mean(), errors.std()),
                "least": run_tables.percent(errors.min()),
                "most": run_tables.percent(errors.max()),
                "diverged": f"{len(diverged)}"
                + (f", at step {diverged['step'].min()}" if len(diverged) else ""),
                "n": len(group),
            }
        )
    return rows


def times(sweep: str) -> Rows:
    """Beginning and end of each run, and the time between, with pauses."""
    rows = []
    for name in SweepFolder(RESULTS / sweep):
        folder = RunFolder(RESULTS / sweep / name)
        status = folder.status()
        assert status is not None, f"{name} has not begun"
        began, ended = map(
            datetime.fromisoformat, (folder.environments()[0]["started"], status.updated)
        )
        rows.append(
            {
                "run": name,
                "began": f"{began:%Y-%m-%d %H:%M}",
                "ended": f"{ended:%Y-%m-%d %H:%M}",
                "attempts": status.attempt,
                "with all pauses": hours((ended - began).total_seconds()),
            }
        )
    return rows


def hours(seconds: float) -> str:
    """Writes seconds as hours and minutes."""
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min"


def to_compare_with(parameters: Callable[[int], int]) -> Rows:
    """Published test errors on CIFAR-10 with 64,000 steps. `parameters`: their number by depth."""
    return [
        {
            "depth": depth,
            "parameters": f"{parameters(depth):,}",
            "paper, residual": paper,
            "reproductions, residual": published.REPRODUCTIONS.error("pad", depth),
            "reproductions, plain": published.REPRODUCTIONS.error("none", depth),
        }
        for depth, paper in published.PAPER.errors["pad"].items()
        if depth in published.REPRODUCTIONS.errors["pad"]
    ]


def ratio(layers: Sequence[float | None]) -> float | None:
    """The first layer's value over the last one's; None if one is not finite or the last is 0."""
    first, last = layers[0], layers[-1]
    return first / last if first is not None and last else None


def untrained_gradients() -> Rows:
    """Gradient norm at the first layer's input over that at the last layer's, before training."""
    rows = []
    for sweep, data in (("digits", "digits"), ("cifar10_short", "CIFAR-10")):
        networks = findings.load_initial(RESULTS / sweep)
        assert networks, f"{sweep} has no {findings.INITIAL}"
        at = {(n.kind, n.depth, n.norm): n.at for n in networks}
        for norm, words in (("batch", "yes"), ("none", "no")):
            for depth in (20, 56, 110):
                row: dict[str, Any] = {"data": data, "BN": words, "depth": depth}
                for kind in KINDS:
                    layers = at[kind, depth, norm].layers
                    row[kind] = short(ratio([layer.input_gradient_norm for layer in layers]))
                for kind in KINDS:
                    row[f"loss, {kind}"] = short(at[kind, depth, norm].loss)
                rows.append(row)
    return rows


def trained_gradients(sweep: str, depths: Sequence[int]) -> Rows:
    """Gradients, responses and shortcuts of a sweep's networks before and after training.

    A measure that no run has is left out.
    """
    table = diagnostic_tables.read_layers(SweepFolder(RESULTS / sweep))
    measures: dict[str, Callable[[pd.DataFrame], float | None]] = {
        "gradient ratio, layers' inputs": lambda t: ratio(list(t["input_gradient_norm"])),
        "gradient ratio, kernels": lambda t: ratio(list(t["weight_gradient_norm"])),
        "gradient ratio, kernels, each times its kernel's norm": lambda t: ratio(
            list(t["weight_gradient_norm"].astype(float) * t["weight_norm"].astype(float))
        ),
        "largest response of a layer": lambda t: float(t["response_std"].max()),
        "mean share of the shortcut": lambda t: float(t["identity_share"].mean()),
    }
    rows = []
    for depth in depths:
        for name, measure in measures.items():
            for moment in (diagnostic_tables.BEFORE, diagnostic_tables.AFTER):
                row: dict[str, Any] = {"depth": depth, "measure": name, "when": moment}
                for kind in KINDS:
                    of_kind = (table["kind"] == kind) & (table["depth"] == depth)
                    one = table[of_kind & (table["moment"] == moment)]
                    layers = (g.sort_values("layer") for _, g in one.groupby("run"))
                    row[kind] = _range([measure(group) for group in layers])
                if any(row[kind] != NONE for kind in KINDS):
                    rows.append(row)
    return rows


def _range(values: Sequence[float | None]) -> str:
    """Writes the least and the largest value; one value if both are alike; a dash without any."""
    known = sorted(v for v in values if v is not None and not math.isnan(v))
    if not known:
        return NONE
    ends = list(dict.fromkeys(short(value) for value in (known[0], known[-1])))
    return " to ".join(ends)


def short(value: float | None) -> str:
    """Writes a value with three digits. Very large and very small ones get a power of ten."""
    if value is None:
        return NONE
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:#.3g}"
    return f"{value:.2g}"
