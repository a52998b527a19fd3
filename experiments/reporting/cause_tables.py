"""The table that holds what explanations predicted against what was measured."""

from collections.abc import Mapping, Sequence

import pandas as pd

from experiments.reporting import diagnostic_tables, readme_tables, run_tables
from experiments.reporting.readme_tables import RESULTS, Rows
from resnet_flax.storage import findings, sweep_tables
from resnet_flax.storage.sweep_folder import SweepFolder

TRAINS, FAILS = 0.1, 0.5
"""Below the first training error a network trains, above the second it fails."""


def conditions(
    sweep: str, predictions: Mapping[str, Sequence[str]], explanations: Sequence[str], depth: int
) -> Rows:
    """One row for each condition that was trained at this depth.

    - `predictions`: condition -> `trains`, `fails` or nothing by each of the explanations.

    A prediction is marked if there are two runs at least: + if it came true, - if the opposite was
    measured, ? if the mean error lies between.
    """
    folder = SweepFolder(RESULTS / sweep)
    summary = sweep_tables.summarize(sweep_tables.read_runs(folder))
    found = summary[summary["depth"] == depth].set_index("kind")
    before = _untrained(folder, depth)
    rows = []
    for kind, said in predictions.items():
        if kind not in found.index:
            continue
        row = found.loc[kind]
        outcome = _outcome(row["train_error"]) if row["n"] > 1 else ""
        rows.append(
            {
                "condition": kind,
                **{
                    name: _marked(one, outcome)
                    for name, one in zip(explanations, said, strict=True)
                },
                "training error": run_tables.percent(row["train_error"], row["train_error_std"]),
                "n": row["n"],
                **before[kind],
            }
        )
    return rows


def beside_untrained(sweep: str, depth: int) -> Rows:
    """Training error by depth, and what was measured in the untrained networks of this depth."""
    before = _untrained(SweepFolder(RESULTS / sweep), depth)
    return [row | before[row["kind"]] for row in readme_tables.by_depth(sweep)]


def _untrained(folder: SweepFolder, depth: int) -> dict[str, dict[str, str]]:
    """Kind -> cells: medians over the seeds that were measured; a dash if there is none."""
    signals = diagnostic_tables.read_signals(folder)
    groups = signals[signals["depth"] == depth].groupby("kind")
    measured = groups[["gradient_ratio", "front_error", "neighbour_error"]].median()
    cells = {}
    for kind in {point.kind for point in folder.points.values()}:
        ratio, *errors = measured.loc[kind] if kind in measured.index else [None] * 3
        front, last = ("–" if pd.isna(error) else f"{error:.0f}" for error in errors)
        cells[kind] = {
            "gradient ratio": "–" if pd.isna(ratio) else f"{ratio:,.3g}",
            "1-NN error, front": front,
            "1-NN error, last stage": last,
        }
    return cells


def predicted_over_measured(sweep: str, depths: Sequence[int]) -> Rows:
    """How many times too high mean-field theory puts the gradient ratio of untrained networks."""
    networks = findings.load_initial(RESULTS / sweep)
    assert networks, f"{sweep} has no {findings.INITIAL}"
    signals = {(n.kind, n.depth): n.signal for n in networks if n.norm == "batch"}
    rows = []
    for kind in dict.fromkeys(kind for kind, _ in signals):
        row = {"condition": kind}
        for depth in depths:
            signal = signals[kind, depth]
            if signal and signal.predicted_ratio and signal.gradient_ratio:
                times = signal.predicted_ratio / signal.gradient_ratio
                row[f"{depth} layers"] = readme_tables.short(times)
        if len(row) > 1:
            rows.append(row)
    return rows


def _outcome(error: float) -> str:
    return "trains" if error < TRAINS else "fails" if error > FAILS else "between"


def _marked(prediction: str, outcome: str) -> str:
    if not prediction or not outcome:
        return prediction
    mark = {prediction: "+", "between": "?"}.get(outcome, "-")
    return f"{prediction} {mark}"
