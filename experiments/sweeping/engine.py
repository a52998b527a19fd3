"""The engine that trains the runs of a grid in this process, one after another."""

from collections.abc import Callable, Sequence
from typing import Protocol

import jax

from experiments.sweeping.grid import GridRun
from resnet_flax.errors import TryAgainError, UserError, summary
from resnet_flax.runtime.interrupt import StopRequest
from resnet_flax.runtime.progress import RunProgress
from resnet_flax.storage.filesystem import AnyPath
from resnet_flax.storage.records import State
from resnet_flax.training import loop

OnChange = Callable[[GridRun, State, str], None]


class Engine(Protocol):
    """Trains runs to their ends, each in its folder below `workdir`, until it is told to stop.

    It calls `on_change` with each new state and the first line of the error, or "". The sweep
    continues if a run fails, or if another process is at work on a run.
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
    """An `Engine` that trains each run in this process, or in all processes of the run together."""
    for run in runs:
        on_change(run, "running", "")
        on_change(run, *attempt(run, workdir, progress, stop))
        if stop.reached():
            return


def attempt(
    run: GridRun, workdir: AnyPath, progress: RunProgress, stop: StopRequest
) -> tuple[State, str]:
    """Trains a run. Returns its state and the first line of the error, or "".

    In a run of several processes it raises the error: one failure stops all of them.
    """
    try:
        return loop.train_and_evaluate(run.config, workdir / run.name, progress, stop), ""
    except TryAgainError as error:
        return "running", summary(error)
    except Exception as error:
        if jax.process_count() > 1:
            raise
        return "failed", summary(error)


def no_ray(flag: str, error: ImportError) -> UserError:
    """The error if Ray, which is optional, cannot be imported."""
    return UserError(
        f"Expected Ray for {flag} ({error}). Install it: .venv/bin/pip install -e '.[ray]' -c"
        " requirements.lock"
    )
