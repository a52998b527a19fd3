"""The engine that takes the runs of a grid to their ends: here, one after another."""

from collections.abc import Callable, Sequence

from experiments.grid import GridRun
from resnet_flax.errors import UserError
from resnet_flax.records import State


def run_here(
    runs: Sequence[GridRun],
    run_one: Callable[[GridRun], State],
    on_change: Callable[[GridRun, State, str], None],
) -> None:
    """Calls `run_one` for each run in this process.

    A run that fails does not end the sweep; one that is told to stop does. `on_change` hears each
    new state, with the error's first line or "". UserErrors pass: they hold for every run.
    """
    for run in runs:
        on_change(run, "running", "")
        error_line = ""
        try:
            state = run_one(run)
        except UserError:
            raise
        except Exception as error:
            state, error_line = "failed", f"{type(error).__name__}: {error}".splitlines()[0]
        on_change(run, state, error_line)
        if state == "preempted":
            return
