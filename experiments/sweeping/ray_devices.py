"""The engine that trains the runs of a grid on Ray.

A run is a Ray task that holds its devices, on this machine or anywhere in a cluster. On a TPU slice
it is one task for each host (`ray_slices.py`). Ray places the tasks. This file chooses the next
run, the longest first, and which runs to try again. A run whose node is lost is always tried again.
A run that fails by itself is tried again a given number of times. Each attempt goes on from the
last checkpoint. The folder's lock keeps out a process that seemed dead but is alive.
"""

import contextlib
import os
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import ray
from ray import exceptions

from experiments.sweeping import devices, engine
from experiments.sweeping.engine import OnChange
from experiments.sweeping.grid import GridRun
from resnet_flax.errors import UserError, summary
from resnet_flax.runtime import process
from resnet_flax.runtime.interrupt import StopRequest
from resnet_flax.runtime.progress import RunProgress
from resnet_flax.storage.filesystem import AnyPath
from resnet_flax.storage.lock import STALE_SECONDS
from resnet_flax.storage.records import DONE, State
from resnet_flax.storage.run_folder import RunFolder

POLL_SECONDS = 0.2
REST_SECONDS = 2.0
PATIENCE = round(2 * STALE_SECONDS / REST_SECONDS)


class Placement(Protocol):
    """Places runs on devices of the cluster."""

    def count(self) -> int:
        """How many runs to give to Ray at once. Some train, the others wait."""
        ...

    def begin(self, run: GridRun, workdir: AnyPath) -> ray.ObjectRef:
        """Gives a run to Ray, as a task that may be cancelled.

        The task returns the state and the reason; "preempted" if the run must be placed again.
        """
        ...


class Devices:
    """A `Placement` of runs on devices of one node each: TPU chips, else GPUs, else cores."""

    def __init__(self, per_run: int, sharing: int, variables: dict[str, str]):
        """Checks that the cluster has the devices, and prepares the task.

        - `per_run`: devices of each run; `sharing`: how many runs share a GPU.
        - `variables`: environment variables of the tasks.

        Raises UserError if no node has enough devices, or if they cannot be shared.
        """
        self._per_run, self._sharing = per_run, sharing
        everywhere = ray.cluster_resources()
        self.kind = next((kind for kind in ("TPU", "GPU") if everywhere.get(kind)), "CPU")
        largest = max(self._of_each_node(), default=0)
        if per_run > largest:
            raise UserError(
                f"Expected --devices_per_run of at most {largest}, the {self.kind} count of the"
                f" largest node, got {per_run}."
            )
        if sharing > 1 and (self.kind, per_run) != ("GPU", 1):
            raise UserError(
                f"Expected --runs_per_device=1, or runs that take one GPU each, got {sharing} where"
                f" each run takes {per_run} of the {self.kind}s."
            )
        held: dict[str, Any]
        if self.kind == "CPU":
            held = {"num_cpus": per_run}
            variables = variables | {"JAX_NUM_CPU_DEVICES": str(per_run)}
        elif self.kind == "TPU":
            held = {"num_cpus": 1, "resources": {"TPU": per_run}}
            variables = of_accelerators(variables)
        else:
            held = {"num_cpus": 1 / sharing, "num_gpus": per_run / sharing}
            variables = of_accelerators(variables)
        if sharing > 1:
            variables = devices.of_shared_gpu(variables, sharing)
        try:
            self._task = ray.remote(
                **held,
                max_retries=0,
                # A process of JAX keeps the accelerators that it saw first, so it serves one task.
                max_calls=0 if self.kind == "CPU" else 1,
                runtime_env={"env_vars": variables},
            )(_train)
        except ValueError as error:  # For example, three chips of a TPU host.
            raise UserError(f"Cannot use --devices_per_run={per_run}: {error}") from error

    def count(self) -> int:
        # As many runs wait as train: no device idles, and an autoscaler sees the demand.
        of_each = (devices * self._sharing // self._per_run for devices in self._of_each_node())
        return 2 * sum(of_each)

    def _of_each_node(self) -> list[int]:
        return [int(node["Resources"].get(self.kind, 0)) for node in nodes(alive=True)]

    def begin(self, run: GridRun, workdir: AnyPath) -> ray.ObjectRef:
        return self._task.options(name=run.name).remote(run, workdir, Path.cwd())


def of_accelerators(variables: dict[str, str]) -> dict[str, str]:
    """Removes JAX_PLATFORMS: the nodes may have other devices than this machine."""
    return {name: value for name, value in variables.items() if name != "JAX_PLATFORMS"}


def nodes(*, alive: bool) -> list[dict[str, Any]]:
    """The nodes that are alive, or those that are lost, as Ray describes them."""
    return [node for node in ray.nodes() if node["Alive"] == alive]


def _train(run: GridRun, workdir: AnyPath, here: Path) -> tuple[State, str]:
    """Trains a run, as a Ray task."""
    set_up(here)
    return attempt(run, workdir)


def set_up(here: Path) -> None:
    """Sets up the process of a run. `here`: the folder that its config's paths are relative to."""
    with contextlib.suppress(OSError):  # A node may not have this folder.
        os.chdir(here)
    process.set_up()


def attempt(run: GridRun, workdir: AnyPath) -> tuple[State, str]:
    """Trains a run as `engine.attempt` does, but waits if the run is locked.

    A process that seemed lost may hold the lock for a while. All processes of a run wait equally
    often.
    """
    with RunProgress(quiet=True) as progress, StopRequest() as stop:
        for _ in range(PATIENCE):
            state, line = engine.attempt(run, workdir, progress, stop)
            if state != "running" or stop.reached():
                break
            time.sleep(REST_SECONDS)
    return state, line


def run_on(
    placement: Placement,
    max_failures: int,
    runs: Sequence[GridRun],
    workdir: AnyPath,
    progress: RunProgress,
    stop: StopRequest,
    on_change: OnChange,
) -> None:
    """An `Engine`, once `placement` and `max_failures` are given: how often a run may fail."""
    queue = _unended(runs, workdir, on_change)
    begun: dict[ray.ObjectRef, GridRun] = {}
    failures, stopping = Counter[str](), False
    while queue or begun:
        while queue and len(begun) < max(placement.count(), 1):
            run = queue.pop(0)
            begun[placement.begin(run, workdir)] = run
            on_change(run, "running", "")
        ended, _ = ray.wait(list(begun), timeout=POLL_SECONDS)
        for task in ended:
            run, (state, line) = begun.pop(task), _outcome(task)
            failures[run.name] += state == "failed"
            again = _why_again(state, line, failures[run.name], max_failures)
            if again and not stopping:
                progress.say(f"{run.name}: {again}")
                queue.insert(0, run)
            else:
                on_change(run, state, line)
        if stop.reached() and not stopping:
            stopping = True
            queue.clear()
            for task in begun:
                ray.cancel(task)


def _why_again(state: State, line: str, failures: int, max_failures: int) -> str:
    """The message about a run that will be tried again; "" for any other run."""
    if state == "preempted":
        return f"{line or 'stopped from elsewhere'}; it is placed again."
    if state == "failed" and failures <= max_failures:
        return f"tried again, {failures} of {max_failures}: {line}"
    return ""


def _unended(runs: Sequence[GridRun], workdir: AnyPath, on_change: OnChange) -> list[GridRun]:
    """Returns the runs that have not ended, the longest first."""
    queue = []
    for run in sorted(runs, key=lambda run: run.point.work, reverse=True):
        ended = None
        with contextlib.suppress(UserError, OSError):  # Training the run reports this error.
            ended = _ended(RunFolder(workdir / run.name))
        if ended:
            on_change(run, *ended)
        else:
            queue.append(run)
    return queue


def _ended(folder: RunFolder) -> tuple[State, str] | None:
    """The state of a run that has ended, and what is wrong with its records. None: it has not."""
    status = folder.status()
    if not status or status.state not in DONE:
        return None
    changed = folder.changed(status)
    return ("failed", changed) if changed else (status.state, "")


def _outcome(task: ray.ObjectRef) -> tuple[State, str]:
    """The state in which a task ended, and the reason."""
    try:
        return ray.get(task)
    except exceptions.TaskCancelledError:
        return "preempted", "stopped"
    except exceptions.NodeDiedError:
        return "preempted", "its node was lost"
    except exceptions.RayTaskError as error:
        return "failed", summary(error.cause)
    except Exception as error:  # Any error of one run must not end the sweep.
        return "failed", summary(error)
