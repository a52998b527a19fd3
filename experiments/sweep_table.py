"""How a sweep stands, as a table for a terminal."""

import time
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from experiments import results
from experiments.grid import GridRun
from resnet_flax.records import RunFolder, State

MARKS: dict[State | None, str] = {
    None: "[dim]·[/]",
    "running": "[yellow]▶[/]",
    "preempted": "[yellow]‖[/]",
    "failed": "[red]failed[/]",
    "diverged": "[red]diverged[/]",
}


class SweepTable:
    """Depths by kinds: a mark for each seed's run, its training error once it has finished."""

    def __init__(self, runs: Sequence[GridRun], workdir: Path):
        """Reads how far the runs have come."""
        self.runs, self.workdir = runs, workdir
        self.states: dict[str, State] = {}
        self.errors: dict[str, dict[str, float]] = {}  # Of finished runs.
        for run in runs:
            status = RunFolder(workdir / run.name).status()
            if status and status.state != "running":
                self.update(run, status.state)
        self._started, self._cost_before = time.monotonic(), self._cost("finished")

    def update(self, run: GridRun, state: State) -> None:
        """Takes note of a run's new state."""
        self.states[run.name] = state
        if state == "finished":
            self.errors[run.name] = results.final_errors(RunFolder(self.workdir / run.name))

    def _cost(self, *states: State | None) -> int:
        # Layers times steps: what a run costs, up to a factor that they share.
        counted = [run.config for run in self.runs if self.states.get(run.name) in states]
        return sum(config.model.depth * config.steps for config in counted)

    def minutes_left(self) -> float | None:
        """None until a run has finished here."""
        gained = self._cost("finished") - self._cost_before
        minutes = (time.monotonic() - self._started) / 60
        return minutes * self._cost(None, "running", "preempted") / gained if gained else None

    def __rich__(self) -> Table:
        left = self.minutes_left()
        title = f"{len(self.errors)} of {len(self.runs)} runs finished"
        title += "" if left is None else f", about {left:.0f} min left"
        kinds = list(dict.fromkeys(run.kind for run in self.runs))
        table = Table("depth", *kinds, title=title, caption="training error of each seed, %")
        for depth in dict.fromkeys(run.config.model.depth for run in self.runs):
            cells = ["  ".join(self._cells(kind, depth)) for kind in kinds]
            table.add_row(str(depth), *cells)
        return table

    def _cells(self, kind: str, depth: int) -> list[str]:
        runs = [run for run in self.runs if (run.kind, run.config.model.depth) == (kind, depth)]
        return [self._cell(run) for run in runs]

    def _cell(self, run: GridRun) -> str:
        if run.name not in self.errors:
            return MARKS[self.states.get(run.name)]
        error = self.errors[run.name].get("train_error")
        return "?" if error is None else f"{100 * error:.1f}"
