"""Runs the grid kind x depth x seed of a config, or what is missing of it; ends with the report.

python -m experiments.sweep --config=configs/degradation.py:digits --workdir=runs/digits
"""

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from rich.table import Table

from experiments import cli, engine, grid, report, results
from experiments.grid import GridRun
from resnet_flax import experiment, loop
from resnet_flax.errors import UserError
from resnet_flax.progress import RunProgress
from resnet_flax.records import RunFolder, State


class SweepTable:
    """Depths by kinds: a mark for each seed's run, its training error once it has finished."""

    MARKS: dict[State | None, str] = {
        None: "[dim]·[/]",
        "running": "[yellow]▶[/]",
        "preempted": "[yellow]‖[/]",
        "failed": "[red]failed[/]",
        "diverged": "[red]diverged[/]",
    }

    def __init__(self, runs: Sequence[GridRun], workdir: Path):
        self.runs, self.workdir = runs, workdir
        self.states: dict[str, State] = {}
        for run in runs:
            status = RunFolder(workdir / run.name).status()
            if status and status.state != "running":
                self.states[run.name] = status.state
        self._started, self._cost_before = time.monotonic(), self._done_cost()

    def _done_cost(self) -> int:
        # Layers times steps: what a run costs, up to a factor that they share.
        done = [run.config for run in self.runs if self.states.get(run.name) == "finished"]
        return sum(config.model.depth * config.steps for config in done)

    def minutes_left(self) -> float | None:
        """None until a run has finished here."""
        gained = self._done_cost() - self._cost_before
        total = sum(run.config.model.depth * run.config.steps for run in self.runs)
        minutes = (time.monotonic() - self._started) / 60
        return minutes * (total - self._done_cost()) / gained if gained else None

    def __rich__(self) -> Table:
        left = self.minutes_left()
        done = sum(state == "finished" for state in self.states.values())
        title = f"{done} of {len(self.runs)} runs finished"
        title += "" if left is None else f", about {left:.0f} min left"
        kinds = list(dict.fromkeys(run.kind for run in self.runs))
        table = Table("depth", *kinds, title=title, caption="training error of each seed, %")
        for depth in dict.fromkeys(run.config.model.depth for run in self.runs):
            cells = [
                "  ".join(
                    self._cell(run)
                    for run in self.runs
                    if (run.kind, run.config.model.depth) == (kind, depth)
                )
                for kind in kinds
            ]
            table.add_row(str(depth), *cells)
        return table

    def _cell(self, run: GridRun) -> str:
        state = self.states.get(run.name)
        if state != "finished":
            return self.MARKS[state]
        error = results.final_errors(RunFolder(self.workdir / run.name))["train_error"]
        return f"{error:.1%}".rstrip("%")


def run_sweep(runs: Sequence[GridRun], workdir: Path) -> dict[str, State]:
    """Every run to its end, what is finished skipped; returns the state of each that was begun."""
    table = SweepTable(runs, workdir)
    with RunProgress() as progress:
        if progress.console.is_terminal:
            progress.header = table

        def run_one(run: GridRun) -> State:
            config = run.config.model_dump(mode="json")
            return loop.train_and_evaluate(config, workdir / run.name, progress)

        def on_change(run: GridRun, state: State, error: str) -> None:
            table.states[run.name] = state
            if error:
                progress.say(f"{run.name}: failed: {error}")
            if state == "finished":
                errors, left = (
                    results.final_errors(RunFolder(workdir / run.name)),
                    table.minutes_left(),
                )
                progress.say(
                    f"{run.name}: training error {errors['train_error']:.2%}, test error"
                    f" {errors['test_error']:.2%}"
                    + ("" if left is None else f"; about {left:.0f} min left")
                )

        engine.run_here(runs, run_one, on_change)
    return table.states


def main(args: flags.FlagValues) -> int:
    workdir = Path(args.workdir).expanduser().absolute()
    runs = grid.expand(args.config.to_dict())
    for run in runs:  # All of them, before the first is begun.
        config = run.config.model_dump(mode="json")
        experiment.build(config)
        RunFolder(workdir / run.name).check(config)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        grid.save(runs, workdir)
    except OSError as error:
        raise UserError(f"Cannot write to workdir {workdir}: {error.strerror}.") from error
    states = run_sweep(runs, workdir)
    report.write(workdir)
    missing = Counter(states.get(run.name, "not begun") for run in runs)
    finished = missing.pop("finished", 0)
    if not missing:
        return 0
    parts = ", ".join(f"{count} {state}" for state, count in missing.items())
    print(f"{finished} of {len(runs)} runs finished; {parts}. The same command goes on.")
    return cli.EXIT_STATUS["preempted"] if missing["preempted"] else cli.FAILURE


if __name__ == "__main__":
    cli.run(
        main,
        config=True,
        workdir="The sweep's folder; the same command again does what is missing.",
    )
