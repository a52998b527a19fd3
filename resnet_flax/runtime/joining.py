"""Connects the processes of one run, by flags or by the variables of their launcher."""

import os
import socket
from typing import NamedTuple

import jax

from resnet_flax.errors import TryAgainError, UserError, summary

MEET_SECONDS = 300
LOST = f"Lost a peer, or met none within {MEET_SECONDS} s. Give the same commands again to go on."
_NOBODY = "coordinator_address should be defined"
_WAY_OUT = "Give each process --coordinator=HOST:PORT of process 0, --num_processes, --process_id"
_ALONE = "or give --num_processes=1 to a process that trains alone."


class _Launcher(NamedTuple):
    """A launcher's variables: the number of processes, and the number of this one."""

    name: str
    size: str
    rank: str


_LAUNCHERS = (
    _Launcher("Open MPI", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    _Launcher("MPICH, or an MPI like it,", "PMI_SIZE", "PMI_RANK"),
    _Launcher("Slurm", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
    _Launcher("torchrun, or a launcher like it,", "WORLD_SIZE", "RANK"),
    _Launcher("jax's own variable", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"),
)


def join(
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    heartbeat_seconds: int,
) -> None:
    """Joins the other processes, or stays alone if nothing says that there are others.

    The arguments are those of `hosts.together`. Raises UserError if the processes cannot meet, and
    TryAgainError if the others do not come in time.
    """
    given = [value is not None for value in (coordinator, num_processes, process_id)]
    if given == [False, True, False] and num_processes == 1:
        return
    if any(given) and not all(given):
        raise UserError(
            "Expected all of --coordinator=HOST:PORT, --num_processes and --process_id, or none,"
            f" or --num_processes=1 alone, got {coordinator}, {num_processes} and {process_id}."
        )
    if coordinator is not None:
        _check_address(coordinator, binds=process_id == 0)
    if (all(given) or not _is_alone_in_slurm()) and _initialize(
        coordinator, num_processes, process_id, heartbeat_seconds
    ):
        return
    if not any(given):
        _check_nobody_else()


def _is_alone_in_slurm() -> bool:
    """Whether Slurm started a single task. jax's detection would give it only one of its GPUs."""
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS") or os.environ.get("SLURM_NTASKS")
    return tasks == "1"


def _initialize(
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    heartbeat_seconds: int,
) -> bool:
    """Lets jax connect the processes. False if jax finds that there are no others."""
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            cluster_detection_method=_detection(told=coordinator is not None),
            initialization_timeout=MEET_SECONDS,
            heartbeat_timeout_seconds=heartbeat_seconds,
        )
    except jax.errors.JaxRuntimeError as error:
        raise TryAgainError(f"{LOST} ({summary(error)})") from None
    except Exception as error:  # Also errors of a cluster's interface or of wrong variables.
        if coordinator is None and _NOBODY in str(error):
            return False
        raise UserError(
            f"Cannot join the other processes: {summary(error).rstrip('.')}. {_WAY_OUT}, {_ALONE}"
        ) from error
    return True


def _detection(*, told: bool) -> str | None:
    """The clusters in which jax looks for peers and for its own devices. None: all it knows.

    jax tries Kubernetes last and asks its server, which not every pod may do. Only a pod of an
    indexed Job can have peers. It need not ask if flags name the peers (`told`).
    """
    others = ("TPU_WORKER_HOSTNAMES", "OMPI_MCA_orte_hnp_uri", "SLURM_STEP_NODELIST")
    if "KUBERNETES_SERVICE_HOST" not in os.environ or any(name in os.environ for name in others):
        return None
    return None if "JOB_COMPLETION_INDEX" in os.environ and not told else "deactivate"


def _check_nobody_else() -> None:
    """Raises UserError if a launcher began other processes that this one cannot find."""
    for name, size, rank in _LAUNCHERS:
        if os.environ.get(size, "1") != "1":
            raise UserError(
                f"{name} says that there are {os.environ[size]} processes ({size}), but not where"
                f" they meet. {_WAY_OUT} (here ${size} and ${rank}), {_ALONE}"
            )


def _check_address(coordinator: str, *, binds: bool) -> None:
    """Raises UserError where jax would crash: without a port, or if the port is in use here."""
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or int(port) >= 2**16:
        raise UserError(f"Expected --coordinator=HOST:PORT, got {coordinator}.")
    if binds:
        try:
            with socket.create_server(("", int(port))):
                pass
        except OSError as error:
            raise UserError(f"Cannot listen on port {port}: {error}. Choose another.") from error
