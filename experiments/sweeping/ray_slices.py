"""Places runs that are larger than a host: each takes all hosts of a TPU slice, with Ray Train.

Ray reserves a slice and starts a process on each of its hosts. `hosts.py` joins these processes
and handles a lost one, as for processes that are started by hand. The processes of a run are its
gang.
"""

import math
import re
import socket
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import ray
import ray.train
from ray.train import RunConfig, ScalingConfig
from ray.train.collective import broadcast_from_rank_zero
from ray.train.v2.jax import JaxConfig, JaxTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from ray.util.tpu import get_tpu_worker_resources

from experiments.sweeping.grid import GridRun
from experiments.sweeping.ray_devices import attempt, nodes, of_accelerators, set_up
from resnet_flax.errors import UserError
from resnet_flax.runtime import hosts
from resnet_flax.storage.filesystem import AnyPath
from resnet_flax.storage.records import State
from resnet_flax.storage.run_folder import RunFolder

HEARTBEAT_SECONDS = 30
LOSS_SECONDS = 30.0  # Ray may notice a lost node later than its gang.
_NAME, _KIND, _TOPOLOGY = "ray.io/tpu-slice-name", "ray.io/tpu-pod-type", "ray.io/tpu-topology"


class Slice(NamedTuple):
    """A kind of TPU slice."""

    generation: str
    """By its name in Ray and Google Cloud's API: v4, v5litepod, v5p, v6e."""
    topology: str
    """Chips along each axis, such as 4x4 or 2x2x2."""

    @property
    def accelerator_type(self) -> str:
        return f"TPU-{self.generation.upper()}"

    def chips(self) -> int:
        return math.prod(int(axis) for axis in self.topology.split("x"))

    def hosts(self) -> int:
        """The number of hosts. Raises ValueError if no such slice is possible."""
        return get_tpu_worker_resources(self.topology, self.accelerator_type)[0]


def parse(text: str, say: Callable[[str], None]) -> Slice:
    """Reads `v5e-16`, a kind that the cluster has, or `v5e:4x4`, which may join it later.

    Calls `say` if the cluster has no such slice yet. Raises UserError, with the kinds that exist.
    """
    there = {node["Labels"][_KIND]: kind for node in nodes(alive=True) if (kind := _kind_of(node))}
    name = re.sub("^v5e", "v5litepod", text)
    try:
        found = there.get(name) or Slice(*name.split(":", 1))
        found.hosts()
    except (TypeError, ValueError) as error:
        kinds = ", ".join(sorted(there)) or "none"
        raise UserError(
            f"Expected --slice of a kind that the cluster has ({kinds}), or GENERATION:TOPOLOGY,"
            f" such as v5e:4x4, got {text!r}."
        ) from error
    if found not in there.values():
        say(f"The cluster has no {text} yet: runs wait for one to join.")
    return found


def _kind_of(node: dict[str, Any]) -> Slice | None:
    """The kind of the slice to which a node belongs; None if it belongs to none."""
    labels = node["Labels"]
    if _KIND not in labels or _TOPOLOGY not in labels:
        return None
    return Slice(labels[_KIND].rpartition("-")[0], labels[_TOPOLOGY])


class Slices:
    """A `Placement` of runs that take a whole slice."""

    def __init__(self, kind: Slice, variables: dict[str, str]):
        self._kind, self._variables = kind, of_accelerators(variables)
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        # In a process of its own, since Ray Train handles signals there.
        self._task = ray.remote(num_cpus=0, max_retries=0, max_calls=1, scheduling_strategy=here)(
            _fit
        )

    def count(self) -> int:
        # A slice of one host may have no name.
        hosts_of = Counter(
            node["Labels"].get(_NAME, node["NodeID"])
            for node in nodes(alive=True)
            if _kind_of(node) == self._kind
        )
        # One run more waits, so that an autoscaler sees the demand.
        return 1 + sum(count == self._kind.hosts() for count in hosts_of.values())

    def begin(self, run: GridRun, workdir: AnyPath) -> ray.ObjectRef:
        task = self._task.options(name=run.name)
        job = {"run": run, "workdir": workdir, "here": Path.cwd()}
        return task.remote(self._kind, self._variables, job)


def _fit(kind: Slice, variables: dict[str, str], job: dict[str, Any]) -> tuple[State, str]:
    """Runs a gang, as a Ray task. The gang ends with the task. A new one resumes the run."""
    name, workdir = job["run"].name, job["workdir"]
    folder = RunFolder(workdir / name)
    before, gone = folder.status(), _gone()
    trainer = JaxTrainer(
        _train,
        train_loop_config=job,
        # Ray does not join the processes: jax would notice a lost host only after minutes.
        jax_config=JaxConfig(),
        scaling_config=ScalingConfig(
            use_tpu=True,
            num_workers=kind.hosts(),
            topology=kind.topology,
            accelerator_type=kind.accelerator_type,
        ),
        run_config=RunConfig(
            name=name,
            storage_path=str(workdir / "gangs"),
            worker_runtime_env={"env_vars": variables},
        ),
    )
    try:
        return trainer.fit().return_value
    except ray.train.TrainingFailedError as error:
        for failure in getattr(error, "worker_failures", {}).values():
            if isinstance(failure, UserError):
                return "failed", str(failure)
        return _after_a_failure(folder, before.attempt if before else 0, gone)


def _after_a_failure(folder: RunFolder, attempts: int, gone: set[str]) -> tuple[State, str]:
    """The outcome of a gang that ended early.

    `attempts`, `gone`: the run's attempts and the lost nodes before it began.
    """
    end = time.monotonic() + LOSS_SECONDS
    while time.monotonic() < end:
        status = folder.status()
        if status and status.attempt > attempts and status.state == "failed":
            return "failed", status.error or ""
        if _gone() - gone:
            return "preempted", "a host was lost"
        time.sleep(1)
    return "failed", "one of its processes died"


def _gone() -> set[str]:
    return {node["NodeID"] for node in nodes(alive=False)}


def _train(job: dict[str, Any]) -> tuple[State, str]:
    """Trains the run in the process of one host. Ray returns the result of the first process."""
    set_up(job["here"])
    context = ray.train.get_context()
    address = ray.util.get_node_ip_address()
    with socket.socket() as free:
        free.bind(("", 0))
        coordinator = broadcast_from_rank_zero(f"{address}:{free.getsockname()[1]}")
    rank, count = context.get_world_rank(), context.get_world_size()
    with hosts.together(coordinator, count, rank, HEARTBEAT_SECONDS):
        try:
            hosts.open_devices()
            return attempt(job["run"], job["workdir"])
        except UserError as error:
            refused = error
    raise refused  # Raised outside the context. Ray Train then ends the others and reports it.
