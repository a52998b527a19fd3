"""Runs the grid of a config, kind x depth x varied fields x seed, and writes the report.

.venv/bin/python -m experiments.sweep --config=configs/degradation.py:digits --workdir=runs/digits
.venv/bin/python -m experiments.sweep ... --vary=optim.lr=0.1,0.01 [--dry_run]
.venv/bin/python -m experiments.sweep ... --engine=ray --devices_per_run=1 [--address=HOST:PORT]
"""

import functools
import math
import os
import sys
from collections import Counter
from collections.abc import Sequence

from absl import flags

from experiments import cli, report
from experiments.sweeping import devices, dry_run, engine, grid, live_table
from experiments.sweeping.engine import Engine
from experiments.sweeping.grid import GridRun
from experiments.sweeping.monitor import RunMonitor, SweepMonitor, number
from resnet_flax.config import resolve
from resnet_flax.errors import ExplainedError, UserError, complain, summary
from resnet_flax.runtime import hosts, parallel
from resnet_flax.runtime.interrupt import StopRequest
from resnet_flax.runtime.progress import RunProgress
from resnet_flax.storage.filesystem import AnyPath
from resnet_flax.storage.records import DONE, State
from resnet_flax.storage.run_folder import RunFolder
from resnet_flax.training import build, initial_state

OF_RAY = ("address", "slice", "devices_per_run", "runs_per_device", "max_failures")


def run_sweep(
    runs: Sequence[GridRun], workdir: AnyPath, run_all: Engine = engine.run_here
) -> dict[str, State]:
    """Trains every run to its end, skips finished ones. Returns the state of each begun run."""
    monitor = SweepMonitor(workdir, [run.point for run in runs])
    monitor.refresh()
    monitors = {run.point.name: run for run in monitor.runs}
    states = {name: run.status.state for name, run in monitors.items() if run.status}
    states = {name: state for name, state in states.items() if state != "running"}
    view = functools.partial(live_table.live_table, monitor)
    with RunProgress(quiet=not hosts.is_first(), view=view) as progress, StopRequest() as stop:
        live = report.LivePage(workdir, progress.say)

        def on_change(run: GridRun, state: State, error: str) -> None:
            states[run.name] = state
            monitors[run.name].given_up = state == "failed"
            if state == "failed":  # Its folder may be empty: a refused run writes nothing.
                monitors[run.name].without_status = state
            if error:
                progress.say(f"{run.name}: {state}: {error}")
            if state == "finished":
                if hosts.is_first():
                    live.update()
                monitor.refresh()
                progress.say(_finished_line(monitors[run.name], monitor.seconds_left))

        run_all(runs, workdir, progress, stop, on_change)
    monitor.refresh()
    for name, run in monitors.items():  # Another sweep of this folder may have ended a run since.
        if states.get(name) == "running" and run.status and run.state in DONE:
            states[name] = run.status.state
    return states


def _finished_line(run: RunMonitor, seconds_left: float | None) -> str:
    errors = ((split, number(run.last.get(split, {}), "error")) for split in ("train", "test"))
    parts = [f"{split} error {error:.2%}" for split, error in errors if error is not None]
    if seconds_left:
        parts.append(f"about {math.ceil(seconds_left / 60)} min left")
    return f"{run.point.name}: {', '.join(parts)}"


def check_grid(runs: Sequence[GridRun], workdir: AnyPath, only: Sequence[str] = ()) -> None:
    """Raises UserError if the folder has another recipe, or if a run cannot begin or resume.

    Writes nothing. `only`: the names of the runs that will begin; all by default.
    """
    grid.check_recipe(runs, workdir)
    for run in runs:
        if not only or run.name in only:
            with grid.named(run.name):
                build.build(run.config)
        config = run.config.model_dump(mode="json")
        begun = RunFolder(workdir / run.name).has_run(config, resolve)
        if run.config.init_from and not begun:
            with grid.named(run.name):
                initial_state.check_source(run.config.init_from, print)


def main(args: flags.FlagValues) -> int:
    workdir = cli.sweep_folder(args)
    if args.dry_run:
        of_others = ("engine", *OF_RAY, *cli.PEERS)
        if given := [f"--{name}" for name in of_others if args[name].present]:
            raise UserError(
                f"Expected --dry_run without {', '.join(given)}: its times are for this machine."
            )
        runs = _runs(args)
        devices.begin(*(run.config for run in runs))
        check_grid(runs, workdir, args.only)
        only = [run for run in runs if not args.only or run.name in args.only]
        dry_run.show(only, workdir, cli.console())
        return 0
    if args.engine == "local":
        _refuse(args, OF_RAY, "--engine=ray")
        with devices.together(args):
            with hosts.alike():
                runs = _runs(args)
            devices.begin(*(run.config for run in runs))
            return sweep(runs, workdir, only=args.only)
    runs = _runs(args)
    _refuse(args, cli.PEERS, "--engine=local")
    for name in ("devices_per_run", "runs_per_device"):
        if args.slice and args[name].present:
            raise UserError(f"Expected --slice or --{name}, got both. A run takes a whole slice.")
    try:
        from experiments.sweeping import ray_cluster
    except ImportError as error:
        raise engine.no_ray("--engine=ray", error) from error
    with ray_cluster.ray_engine(
        args.address,
        args.devices_per_run,
        args.runs_per_device,
        args.slice,
        args.max_failures,
    ) as (run_all, devices_per_run):
        for run in runs:
            parallel.check_divisible(run.config.data.batch_size, devices_per_run)
        for line in devices.notes([run.config for run in runs], devices_per_run):
            print(line, file=sys.stderr)
        return sweep(runs, workdir, run_all, args.only)


def _refuse(args: flags.FlagValues, names: Sequence[str], engine_flag: str) -> None:
    """Raises UserError if one of these flags was given."""
    for name in names:
        if args[name].present:
            raise UserError(f"Expected {engine_flag} with --{name}, got --engine={args.engine}.")


def _runs(args: flags.FlagValues) -> list[GridRun]:
    """The runs of the grid. Raises UserError if it is not valid or lacks a run of --only."""
    runs = grid.runs_of(cli.sweep_config(args))
    names = [run.name for run in runs]
    for name in args.only:
        if name not in names:
            raise UserError(
                f"Expected --only with runs of this grid, {', '.join(names)}; got {name}."
            )
    return runs


def sweep(
    runs: list[GridRun],
    workdir: AnyPath,
    run_all: Engine = engine.run_here,
    only: Sequence[str] = (),
) -> int:
    """Trains the missing runs, writes the report and prints what is still missing.

    `only`: the names of the runs to train; all by default. The process that ends the last run of
    the grid writes the report. Returns the exit status.
    """
    whole, runs = runs, [run for run in runs if not only or run.name in only]
    with hosts.alike() as facts:
        facts["runs"] = {run.name: "begun" for run in runs}  # Each run compares its own config.
        check_grid(whole, workdir, only)
        if hosts.is_first():
            try:
                workdir.mkdir(parents=True, exist_ok=True)
                grid.save(whole, workdir)
            except OSError as error:
                raise UserError(f"Cannot write to workdir {workdir}: {error.strerror}.") from error
    states = run_sweep(runs, workdir, run_all)
    missing = Counter(states.get(run.name, "not begun") for run in runs)
    finished = missing.pop("finished", 0)
    stopped = missing.keys() & {"preempted", "running", "not begun"}
    reported = True
    if hosts.is_first():
        # Who stops a sweep wants a prompt, not a table. The page is written while runs end.
        if not stopped and (not only or _is_over(whole, workdir)):
            reported = _report(workdir)
        if missing:
            parts = ", ".join(f"{count} {state}" for state, count in missing.items())
            goes_on = (
                " Run the same command again to continue." if missing.keys() - {"diverged"} else ""
            )
            print(f"{finished} of {len(runs)} runs finished; {parts}.{goes_on}")
    if not missing and reported:
        return 0
    return cli.EXIT_STATUS["preempted"] if stopped else cli.FAILURE


def _report(workdir: AnyPath) -> bool:
    """Writes the report. If that fails, one line says why, and what is missing is still said."""
    try:
        report.write(workdir)
    except (ExplainedError, OSError) as error:
        complain(f"Cannot write the report: {summary(error)}")
        return False
    return True


def _is_over(runs: Sequence[GridRun], workdir: AnyPath) -> bool:
    monitor = SweepMonitor(workdir, [run.point for run in runs])
    monitor.refresh()
    return monitor.is_over


if __name__ == "__main__":
    flags.DEFINE_bool(
        "dry_run", False, "Checks all runs and lists them with their cost and time. Trains none."
    )
    flags.DEFINE_list("only", [], "Names of runs of the grid; all by default.")
    flags.DEFINE_enum(
        "engine", "local", ["local", "ray"], "local: one run after another; ray: side by side."
    )
    flags.DEFINE_string(
        "address",
        os.environ.get("RAY_ADDRESS", ""),
        "HOST:PORT of a Ray cluster; empty: this machine.",
    )
    flags.DEFINE_integer(
        "devices_per_run", 1, "Devices of one node that each run holds.", lower_bound=1
    )
    flags.DEFINE_integer("runs_per_device", 1, "Runs that share a GPU.", lower_bound=1)
    flags.DEFINE_string("slice", "", "The TPU slice that each run takes whole: v5e-16, or v5e:4x4.")
    flags.DEFINE_integer(
        "max_failures", 2, "How often a run that fails is tried again.", lower_bound=0
    )
    cli.run(
        main,
        config="sweep",
        workdir="The sweep's folder. The same command again trains the missing runs.",
        processes=True,
    )
