"""The engine that takes the runs of a grid to their ends here, one after another."""

from collections.abc import Callable, Sequence
from typing import Protocol

import jax

from experiments.sweeping.grid import GridRun
from resnet_flax.errors import TryAgainError, summary
from resnet_flax.runtime.interrupt import StopRequest
from resnet_flax.runtime.progress import RunProgress
from resnet_flax.storage.filesystem import AnyPath
from resnet_flax.storage.records import State
from resnet_flax.training import loop

OnChange = Callable[[GridRun, State, str], None]


class Engine(Protocol):
    """Takes runs to their ends, in a folder each below `workdir`, or until it is told to stop.

    `on_change` hears each new state, with the error's first line or "". A run that fails does not
    end the sweep, nor does one that another process is at work on.
    """

    def __call__(
        self,
        runs: Sequence[GridRun],
        workdir: AnyPath,
        progress: RunProgress,
        stop: StopRequest,
        on_change: OnChange,
    ) -> None: ...


def run_here(
    runs: Sequence[GridRun],
    workdir: AnyPath,
    progress: RunProgress,
    stop: StopRequest,
    on_change: OnChange,
) -> None:
    """An `Engine`: each run in this process, or in these, which then must not part ways."""
    for run in runs:
        on_change(run, "running", "")
        on_change(run, *attempt(run, workdir, progress, stop))
        if stop.reached():
            return


def attempt(
    run: GridRun, workdir: AnyPath, progress: RunProgress, stop: StopRequest
) -> tuple[State, str]:
    """Trains a run; its state then, and an error's first line or "".

    With several processes an error is raised, since they must not part ways.
    """
    try:
        return loop.train_and_evaluate(run.config, workdir / run.name, progress, stop), ""
    except TryAgainError as error:
        return "running", summary(error)
    except Exception as error:
        if jax.process_count() > 1:
            raise
        return "failed", summary(error)
