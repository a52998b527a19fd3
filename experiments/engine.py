"""The engine that takes the runs of a grid to their ends: here, one after another."""

from collections.abc import Callable, Sequence

import jax

from experiments.grid import GridRun
from resnet_flax.errors import TryAgainError, summary
from resnet_flax.interrupt import StopRequest
from resnet_flax.records import State


def run_here(
    runs: Sequence[GridRun],
    run_one: Callable[[GridRun], State],
    on_change: Callable[[GridRun, State, str], None],
    stop: StopRequest,
) -> None:
    """Calls `run_one` for each run in this process.

    A run that fails does not end the sweep, unless it is trained by several processes, which must
    not part ways; nor does one that another process is at work on; a request to stop does.
    `on_change` hears each new state, with the error's first line or "".
    """
    for run in runs:
        on_change(run, "running", "")
        error_line = ""
        try:
            state = run_one(run)
        except TryAgainError as error:
            state, error_line = "running", summary(error)
        except Exception as error:
            if jax.process_count() > 1:
                raise
            state, error_line = "failed", summary(error)
        on_change(run, state, error_line)
        if stop.reached():
            return
