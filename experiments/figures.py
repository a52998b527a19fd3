"""The figures of a sweep, from tables of `results.py`."""

import itertools
from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

# Okabe and Ito's, safe for the colour-blind; markers tell the kinds apart in grey.
KIND_STYLES = [
    {"color": "#D55E00", "marker": "o"},
    {"color": "#0072B2", "marker": "s"},
    {"color": "#009E73", "marker": "^"},
    {"color": "#CC79A7", "marker": "D"},
]
STYLE = {
    "font.size": 11,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#dddddd",
    "savefig.dpi": 200,
    "svg.hashsalt": "resnet_flax",  # The same records give the same file.
}


def save_degradation(runs: pd.DataFrame, summary: pd.DataFrame, paths: list[Path]) -> None:
    """Training error (clean, eval mode) against depth: means, deviations, single runs."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 4.2), layout="constrained")
        axes = figure.subplots()
        for (kind, rows), style in zip(
            summary.groupby("kind"), itertools.cycle(KIND_STYLES), strict=False
        ):
            axes.errorbar(
                rows["depth"],
                rows["train_error"],
                yerr=rows["train_error_std"].fillna(0),
                label=f"{kind} (mean ± deviation, n = {_counts(rows['n'])})",
                capsize=4,
                linewidth=2,
                **style,
            )
            single = runs[(runs["kind"] == kind) & (runs["state"] == "finished")]
            axes.scatter(single["depth"], single["train_error"], s=14, alpha=0.4, **style)
        axes.set_xticks(sorted(summary["depth"].unique()))
        axes.set_xlabel("depth (weighted layers)")
        axes.set_ylabel("training error")
        _percent(axes)
        axes.legend(frameon=False)
        _save(figure, paths)


def save_curves(curves: pd.DataFrame, paths: list[Path]) -> None:
    """As Fig. 6: error against steps, training dashed and test solid, means over seeds."""
    with matplotlib.rc_context(STYLE):
        kinds = sorted(curves["kind"].unique())
        figure = Figure(figsize=(5.4 * len(kinds), 4.2), layout="constrained")
        panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
        depths = sorted(curves["depth"].unique())
        colours = matplotlib.colormaps["viridis"].resampled(len(depths) + 1)
        for axes, kind in zip(panels, kinds, strict=True):
            for i, depth in enumerate(depths):
                rows = curves[(curves["kind"] == kind) & (curves["depth"] == depth)]
                for measure, line in (("running_error", "--"), ("test_error", "-")):
                    mean = rows[rows["measure"] == measure].groupby("step")["error"].mean()
                    label = f"{depth}" if line == "-" else None
                    axes.plot(mean.index, mean, line, color=colours(i), label=label)
            axes.set_title(f"{kind}: training (running) dashed, test solid")
            axes.set_xlabel("step")
            _percent(axes)
        panels[0].set_ylabel("error")
        panels[-1].legend(title="depth", frameon=False)
        _save(figure, paths)


def save_costs(costs: pd.DataFrame, paths: list[Path]) -> None:
    """Step time, time to compile and memory against depth, logarithmic but for compilation."""
    panels = {
        "step_ms": "step, ms",
        "build_s": "trace and compile, s",
        "temporary_mb": "memory beside the state, MiB",
    }
    costs = costs.assign(build_s=costs["trace_s"] + costs["compile_s"])
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(12, 3.8), layout="constrained")
        for axes, (column, label) in zip(
            figure.subplots(1, len(panels)), panels.items(), strict=True
        ):
            for (program, rows), style in zip(
                costs.groupby("program", sort=False), itertools.cycle(KIND_STYLES), strict=False
            ):
                axes.loglog(rows["depth"], rows[column], label=program, linewidth=2, **style)
            if column == "build_s":
                axes.set_yscale("linear")
                axes.set_ylim(bottom=0)
            depths = sorted(costs["depth"].unique())
            axes.set_xticks(depths, [str(depth) for depth in depths])
            axes.minorticks_off()
            axes.set_xlabel("depth (weighted layers)")
            axes.set_title(label)
        axes.legend(frameon=False)
        _save(figure, paths)


def _counts(n: pd.Series) -> str:
    return f"{n.min()}" if n.min() == n.max() else f"{n.min()} to {n.max()}"


def _percent(axes: Axes) -> None:
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))


def _save(figure: Figure, paths: list[Path]) -> None:
    for path in paths:
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
