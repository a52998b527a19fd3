"""Runs that are larger than a host: each on all hosts of a TPU slice at once, by Ray Train.

Ray reserves a slice and starts a process on each of its hosts; how these meet, and what they do
when one is lost, is `hosts.py`'s business, as for processes started by hand.
"""

import contextlib
import math
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent import futures
from pathlib import Path
from typing import Any, NamedTuple

import ray
import ray.train
from ray.train import RunConfig, ScalingConfig
from ray.train.collective import broadcast_from_rank_zero
from ray.train.v2.jax import JaxConfig, JaxTrainer
from ray.util.tpu import get_tpu_worker_resources

from experiments import cli
from experiments.engine_ray import Attempt, attempt
from experiments.grid import GridRun
from resnet_flax import hosts
from resnet_flax.errors import UserError
from resnet_flax.records import RunFolder, State

HEARTBEAT_SECONDS = 30
LOSS_SECONDS = 30.0  # Ray may notice later than a gang that a node is gone.
_NAME, _KIND, _TOPOLOGY = "ray.io/tpu-slice-name", "ray.io/tpu-pod-type", "ray.io/tpu-topology"


class Slice(NamedTuple):
    """A kind of TPU slice."""

    generation: str
    """As Ray and Google Cloud's API have it: v4, v5litepod, v5p, v6e."""
    topology: str
    """Chips along each axis: 4x4, or 2x2x2."""

    @property
    def accelerator_type(self) -> str:
        return f"TPU-{self.generation.upper()}"

    def chips(self) -> int:
        return math.prod(int(axis) for axis in self.topology.split("x"))

    def hosts(self) -> int:
        """How many it has. Raises ValueError if there can be no such slice."""
        return get_tpu_worker_resources(self.topology, self.accelerator_type)[0]


def parse(text: str, say: Callable[[str], None]) -> Slice:
    """`v5e-16`, a kind that the cluster has, or `v5e:4x4`, of which `say` hears if it has none yet.

    Raises UserError, naming what there is.
    """
    labels = [node["Labels"] for node in ray.nodes() if node["Alive"]]
    there = {(node[_KIND], node[_TOPOLOGY]) for node in labels if _KIND in node}
    name = re.sub("^v5e", "v5litepod", text)
    generation, _, topology = name.partition(":")
    for kind, of_kind in there:
        if name == kind:
            generation, topology = kind.split("-")[0], of_kind
    try:
        found = Slice(generation, topology)
        found.hosts()
    except ValueError as error:
        kinds = ", ".join(sorted(kind for kind, _ in there)) or "none"
        raise UserError(
            f"Expected --slice of a kind that the cluster has ({kinds}), or GENERATION:TOPOLOGY,"
            f" such as v5e:4x4, got {text!r}."
        ) from error
    if (found.generation, found.topology) not in {(kind.split("-")[0], t) for kind, t in there}:
        say(f"The cluster has no {text} yet: runs wait for one to join.")
    return found


class Slices:
    """`Places` for runs that take a whole slice."""

    def __init__(self, kind: Slice, variables: dict[str, str]):
        self._kind, self._variables = kind, variables

    def count(self) -> int:
        labels = [node["Labels"] for node in ray.nodes() if node["Alive"]]
        hosts_of = Counter(
            node[_NAME]
            for node in labels
            if _NAME in node
            and node.get(_TOPOLOGY) == self._kind.topology
            and node.get(_KIND, "").startswith(f"{self._kind.generation}-")
        )
        return sum(count == self._kind.hosts() for count in hosts_of.values())

    def begin(self, run: GridRun, workdir: Path) -> Attempt:
        result: futures.Future[tuple[State, str]] = futures.Future()

        def fit() -> None:
            with contextlib.suppress(futures.InvalidStateError):  # It was cancelled.
                try:
                    result.set_result(self._fit(run, workdir))
                except Exception as error:
                    result.set_exception(error)

        # A gang ends with the sweep, and goes on from its last checkpoint.
        threading.Thread(target=fit, daemon=True, name=run.name).start()
        return Attempt(run, result, result.cancel)

    def _fit(self, run: GridRun, workdir: Path) -> tuple[State, str]:
        there = _alive()
        trainer = JaxTrainer(
            _train,
            train_loop_config={"run": run, "workdir": workdir},
            # Where Ray makes them meet, jax notices a lost host only after minutes.
            jax_config=JaxConfig(),
            scaling_config=ScalingConfig(
                use_tpu=True,
                num_workers=self._kind.hosts(),
                topology=self._kind.topology,
                accelerator_type=self._kind.accelerator_type,
            ),
            run_config=RunConfig(
                name=run.name,
                storage_path=str(workdir / "gangs"),
                worker_runtime_env={"env_vars": self._variables},
            ),
        )
        try:
            trainer.fit()
        except ray.train.TrainingFailedError:
            return _after_a_failure(RunFolder(workdir / run.name), there)
        status = RunFolder(workdir / run.name).status()
        return (status.state if status else "running"), ""


def _after_a_failure(folder: RunFolder, there: set[str]) -> tuple[State, str]:
    """What became of a gang that ended early; `there`: the nodes at its beginning."""
    end = time.monotonic() + LOSS_SECONDS
    while time.monotonic() < end:
        status = folder.status()
        if status and status.state == "failed":
            return "failed", status.error or ""
        if there - _alive():
            return "preempted", "a host was lost"
        time.sleep(1)
    return "failed", "one of its processes died"


def _alive() -> set[str]:
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


def _train(job: dict[str, Any]) -> None:
    """What the process on each host does."""
    cli.set_up()
    context = ray.train.get_context()
    address = ray.util.get_node_ip_address()
    with socket.socket() as free:
        free.bind(("", 0))
        coordinator = broadcast_from_rank_zero(f"{address}:{free.getsockname()[1]}")
    rank, count = context.get_world_rank(), context.get_world_size()
    with hosts.together(coordinator, count, rank, HEARTBEAT_SECONDS):
        attempt(job["run"], job["workdir"])
