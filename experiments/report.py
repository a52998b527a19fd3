"""Writes the table, figures and page of a sweep or a run from its records; needs no JAX.

.venv/bin/python -m experiments.report --workdir=runs/digits
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence

import pandas as pd
from absl import flags
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from experiments import cli
from experiments.reporting import (
    charts,
    curves,
    diagnostic_charts,
    drawing,
    figures,
    markdown,
    page,
    published,
    run_tables,
    styling,
)
from experiments.reporting.chart import Chart, drawable, not_drawn
from resnet_flax import errors
from resnet_flax.storage import filesystem
from resnet_flax.storage.filesystem import AnyPath
from resnet_flax.storage.sweep_folder import sweep_or_run

REST_SECONDS = 5.0
_HEADINGS = {
    "train_error": "training",
    "running_error": "running",
    "test_error": "test",
}


def read(workdir: AnyPath) -> tuple[run_tables.Tables, list[Chart]]:
    """Reads the tables of a sweep or a run, and the charts of its diagnostics.

    Raises UserError if the folder is neither a sweep's nor a run's, or if a file in it is damaged.
    """
    tables = run_tables.read(sweep_or_run(workdir))
    styles = styling.group_styles(tables.groups)
    return tables, diagnostic_charts.read(tables.sweep, styles, tables.runs)


def write(workdir: AnyPath) -> None:
    """Writes table.csv, table.md, the figures and report.html; prints the table and the paths.

    Raises UserError if a file in the folder cannot be used.
    """
    tables, diagnostics = read(workdir)
    console = cli.console()
    sweep, runs, summary, records, groups, _, notes = tables
    styles, varied = styling.group_styles(groups), sweep.varying.in_grid
    for run in runs[runs["state"] != "finished"].itertuples():
        line = f"{run.run}: {run.state} at step {run.step}; not in the table."
        console.print(errors.printable(f"{line} {run.reason}".rstrip()), markup=False)
    for line in notes:
        console.print(line, markup=False)
    shown = list(diagnostics)
    written = []
    if summary.empty:
        console.print("No run has finished: no table.")
    else:
        written = [workdir / "table.csv", workdir / "table.md"]
        # Without times, so that the same configs give the same file.
        filesystem.write_text(
            written[0], summary.drop(columns=["minutes", "group"]).to_csv(index=False)
        )
        filesystem.write_text(written[1], in_markdown(tables))
        shown = [
            charts.degradation(runs, summary, styles, varied),
            charts.error_map(runs, summary, varied),
            curves.means(records),
            curves.by_depth(records, groups),
            *shown,
        ]
        console.print(_printed(summary, varied))
        for line in _claims(summary):
            console.print(line, markup=False)
    if boxes := drawing.unreadable("".join(groups)):
        console.print(
            f"Figures show boxes for {boxes}: no font here has these signs. Install one, such as"
            " Noto Sans CJK. The page shows them.",
            markup=False,
        )
    if line := not_drawn(shown):
        console.print(line, markup=False)
    drawn = drawable(shown)
    for name in {chart.name for chart in shown} - {chart.name for chart in drawn}:
        figures.remove(name, workdir)  # An earlier report may have had it.
    for chart in drawn:
        written += figures.save(chart, workdir, _note(tables, chart))
    written.append(page.write(tables, diagnostics))
    for path in written:
        console.print(cli.shown(path), markup=False)


def in_markdown(tables: run_tables.Tables) -> str:
    """The table for a README. Adds published results where they are comparable."""
    varied = tables.sweep.varying.in_grid
    sources = published.comparable(tables.configs.values(), tables.sweep.varying)
    shortcuts = run_tables.shortcuts(tables.runs, tables.configs)
    timed = tables.summary["minutes"].notna().any()
    rows = []
    for row in tables.summary.to_dict("records"):
        kind, depth = row["kind"], row["depth"]
        cells = {"kind": kind, **{field: str(row[field]) for field in varied}, "depth": depth}
        cells["parameters"] = f"{row['parameters']:,.0f}"
        for name, heading in _HEADINGS.items():
            cells[f"{heading} error"] = run_tables.percent(row[name], row[f"{name}_std"])
        cells |= {f"{one.title}, 64k steps": one.error(shortcuts[kind], depth) for one in sources}
        cells |= {"minutes": run_tables.minutes(row["minutes"])} if timed else {}
        rows.append(cells | {"n": row["n"]})
    notes = ["Errors in %: mean ± sample deviation over n seeds."]
    notes += ["Minutes: mean wall time; a dash where it was not recorded."] if timed else []
    if sources:
        notes.append(f"{', '.join(one.title for one in sources)}: test errors.")
    notes += tables.notes
    return f"{markdown.table(rows)}\n{' '.join(notes)}\n"


class LivePage:
    """The page report.html of a sweep that is running. An error in it does not stop the sweep."""

    def __init__(self, workdir: AnyPath, say: Callable[[str], None]):
        self._workdir, self._say = workdir, say
        self._due = -math.inf

    def update(self) -> None:
        """Writes the page, unless it was written a few seconds ago."""
        if time.monotonic() < self._due:
            return
        try:
            page.write(*read(self._workdir))
        except Exception as error:
            self._say(f"Cannot write report.html; the sweep continues: {errors.summary(error)}")
        self._due = time.monotonic() + REST_SECONDS


def _note(tables: run_tables.Tables, chart: Chart) -> str:
    """What was measured, for the figure: data, seeds, and what its bars and bands are."""
    data = sorted({str(config.get("data.name")) for config in tables.configs.values()})
    seeds = chart.seeds
    is_range = len(seeds) > 5 and seeds[-1] - seeds[0] == len(seeds) - 1
    named = f"{seeds[0]} to {seeds[-1]}" if is_range else ", ".join(map(str, seeds))
    series = [one for panel in chart.panels for one in panel.series]
    parts = [", ".join(data), f"seed{'s' * (len(seeds) > 1)} {named}"]
    parts += ["bars: sample deviation"] if any(len(one.deviations) for one in series) else []
    parts += ["bands: sample deviation"] if any(len(one.band) for one in series) else []
    parts += [chart.left_out] if chart.left_out else []
    return "; ".join(parts)


def _claims(summary: pd.DataFrame) -> Iterator[str]:
    """A line for each group of at least two depths: the change of its training error."""
    for reading in run_tables.readings(summary):
        depths = [end["depth"] for end in reading["ends"]]
        if len(depths) > 1:
            between = f"training error from {depths[0]} to {depths[1]} layers"
            yield f"{reading['group']}: {between}: {reading['change']}"


def _printed(summary: pd.DataFrame, varied: Sequence[str]) -> Table:
    table = Table(
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        caption="errors in %: mean ± deviation over n seeds",
    )
    for heading in ("kind", *varied, "depth", "parameters", *_HEADINGS.values(), "n"):
        table.add_column(heading, justify="left" if heading == "kind" else "right", no_wrap=True)
    for row in summary.to_dict("records"):
        errors = [run_tables.percent(row[name], row[f"{name}_std"]) for name in _HEADINGS]
        names = row["kind"], *(row[field] for field in varied), row["depth"]
        # As Text: names must not be read as markup.
        cells = *names, f"{row['parameters']:,.0f}", *errors, row["n"]
        table.add_row(*(Text(str(cell)) for cell in cells))
    return table


def main(args: flags.FlagValues) -> None:
    write(filesystem.path(args.workdir))


if __name__ == "__main__":
    cli.run(
        main,
        config="none",
        workdir="The folder of a sweep or of a run; the report is written into it.",
    )
