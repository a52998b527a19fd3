"""Runs the grid kind x depth x seed of a config, or what is missing of it; ends with the report.

python -m experiments.sweep --config=configs/degradation.py:digits --workdir=runs/digits
"""

import functools
from collections import Counter
from collections.abc import Sequence

from absl import flags

from experiments import cli, devices, engine, grid, report, sweep_table
from experiments.grid import GridRun
from experiments.monitor import RunMonitor, SweepMonitor, number
from resnet_flax import disk, experiment, hosts, loop, schema
from resnet_flax.disk import AnyPath
from resnet_flax.errors import UserError
from resnet_flax.interrupt import StopRequest
from resnet_flax.progress import RunProgress
from resnet_flax.records import RunFolder, State


def run_sweep(runs: Sequence[GridRun], workdir: AnyPath) -> dict[str, State]:
    """Every run to its end, what is finished skipped; returns the state of each that was begun."""
    monitor = SweepMonitor(workdir, [run.point for run in runs])
    monitor.refresh()
    monitors = {run.point.name: run for run in monitor.runs}
    states = {name: run.status.state for name, run in monitors.items() if run.status}
    states = {name: state for name, state in states.items() if state != "running"}
    view = functools.partial(sweep_table.live_table, monitor)
    with RunProgress(quiet=not hosts.is_first(), view=view) as progress, StopRequest() as stop:
        live = report.LivePage(workdir, progress.say)

        def run_one(run: GridRun) -> State:
            config = run.config.model_dump(mode="json")
            return loop.train_and_evaluate(config, workdir / run.name, progress, stop)

        def on_change(run: GridRun, state: State, error: str) -> None:
            states[run.name] = state
            if state == "failed":  # Also what was refused before anything was written.
                monitors[run.name].without_status = state
            if error:
                progress.say(f"{run.name}: {state}: {error}")
            if state == "finished":
                if hosts.is_first():
                    live.update()
                monitor.refresh()
                progress.say(_finished_line(monitors[run.name], monitor.seconds_left))

        engine.run_here(runs, run_one, on_change, stop)
    return states


def _finished_line(run: RunMonitor, seconds_left: float | None) -> str:
    errors = ((split, number(run.last.get(split, {}), "error")) for split in ("train", "test"))
    parts = [f"{split} error {error:.2%}" for split, error in errors if error is not None]
    if seconds_left:
        parts.append(f"about {seconds_left / 60:.0f} min left")
    return f"{run.point.name}: {', '.join(parts)}"


def check(runs: Sequence[GridRun], workdir: AnyPath) -> None:
    """Raises UserError if any run could not be begun or resumed; writes nothing."""
    for run in runs:
        config = run.config.model_dump(mode="json")
        experiment.build(config)
        RunFolder(workdir / run.name).check(config, schema.resolve)


def main(args: flags.FlagValues) -> int:
    runs = grid.expand(args.config.to_dict())
    with devices.together(args, runs[0].config):
        return sweep(runs, disk.path(args.workdir))


def sweep(runs: Sequence[GridRun], workdir: AnyPath) -> int:
    """Runs what is missing, writes the report, says what is still missing; the exit status."""
    check(runs, workdir)
    if hosts.is_first():
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            grid.save(runs, workdir)
        except OSError as error:
            raise UserError(f"Cannot write to workdir {workdir}: {error.strerror}.") from error
    states = run_sweep(runs, workdir)
    missing = Counter(states.get(run.name, "not begun") for run in runs)
    finished = missing.pop("finished", 0)
    if hosts.is_first():
        report.write(workdir)
        if missing:
            parts = ", ".join(f"{count} {state}" for state, count in missing.items())
            goes_on = " The same command goes on." if missing.keys() - {"diverged"} else ""
            print(f"{finished} of {len(runs)} runs finished; {parts}.{goes_on}")
    if not missing:
        return 0
    stopped = missing.keys() & {"preempted", "running", "not begun"}
    return cli.EXIT_STATUS["preempted"] if stopped else cli.FAILURE


if __name__ == "__main__":
    cli.run(
        main,
        config=True,
        workdir="The sweep's folder; the same command again does what is missing.",
        processes=True,
    )
