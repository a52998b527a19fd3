"""Table and figures of a sweep from its records alone: no JAX, no checkpoint needed.

python -m experiments.report --workdir=runs/digits
"""

from pathlib import Path

import pandas as pd
from absl import flags
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from experiments import cli, figures, results

_HEADINGS = {
    "train_error": "training",
    "running_error": "running",
    "test_error": "test",
}


def write(workdir: Path) -> None:
    """Writes table.csv, degradation.png and .svg, curves.png; prints the table and the paths."""
    console = Console(highlight=False, soft_wrap=True)
    runs = results.read_runs(workdir)
    summary = results.summarize(runs)
    for run in runs[runs["state"] != "finished"].itertuples():
        console.print(f"{run.run}: {run.state} at step {run.step}; not in the table.")
    if summary.empty:
        console.print("No run has finished yet: nothing to draw.")
        return
    written = [workdir / name for name in ("table.csv", "degradation.png", "degradation.svg")]
    summary.to_csv(written[0], index=False)
    figures.save_degradation(runs, summary, written[1:])
    written.append(workdir / "curves.png")
    figures.save_curves(results.read_curves(workdir), written[-1:])
    console.print(_printed(summary))
    for path in written:
        console.print(str(path), markup=False)


def _printed(summary: pd.DataFrame) -> Table:
    table = Table(
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        caption="errors in %: mean ± deviation over n seeds",
    )
    for heading in ("kind", "depth", "parameters", *_HEADINGS.values(), "n"):
        table.add_column(heading, justify="left" if heading == "kind" else "right", no_wrap=True)
    for row in summary.to_dict("records"):
        errors = [_mean_and_deviation(row[name], row[f"{name}_std"]) for name in _HEADINGS]
        names = row["kind"], str(row["depth"]), f"{row['parameters']:,.0f}"
        table.add_row(*names, *errors, str(row["n"]))
    return table


def _mean_and_deviation(mean: float, deviation: float) -> str:
    return f"{mean:.2%}".rstrip("%") + (
        f" ± {deviation * 100:.2f}" if deviation == deviation else ""
    )


def main(args: flags.FlagValues) -> None:
    write(Path(args.workdir))


if __name__ == "__main__":
    cli.run(main, config=False, workdir="The sweep's folder; what is made goes into it.")
