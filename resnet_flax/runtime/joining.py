"""How the processes of one run find each other: by flags, or by what their launcher says."""

import os
import socket
from typing import NamedTuple

import jax

from resnet_flax.errors import TryAgainError, UserError, summary

MEET_SECONDS = 300
LOST = f"Lost a peer, or met none within {MEET_SECONDS} s; the same commands go on."
_NOBODY = "coordinator_address should be defined"
_WAY_OUT = "Give --coordinator=HOST:PORT of process 0, --num_processes and --process_id to each"
_ALONE = "or --num_processes=1 to one that trains alone."


class _Launcher(NamedTuple):
    """The environment variables that say how many processes were begun, and which one this is."""

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
    """Meets the others, or stays alone where nothing says that there are any; as `hosts.together`.

    Raises UserError where they cannot meet, TryAgainError where the others do not come.
    """
    given = [value is not None for value in (coordinator, num_processes, process_id)]
    if given == [False, True, False] and num_processes == 1:
        return
    if any(given) and not all(given):
        raise UserError(
            "Expected all of --coordinator=HOST:PORT, --num_processes and --process_id, none, or"
            f" --num_processes=1 alone, got {coordinator}, {num_processes} and {process_id}."
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
    """A task that is alone would get but one of its GPUs from jax's detection."""
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS") or os.environ.get("SLURM_NTASKS")
    return tasks == "1"


def _initialize(
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    heartbeat_seconds: int,
) -> bool:
    """Whether there are others, and they have met."""
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
    except Exception as error:  # Also what a cluster's interface raises, and wrong variables.
        if coordinator is None and _NOBODY in str(error):
            return False
        raise UserError(
            f"Cannot join the other processes: {summary(error).rstrip('.')}. {_WAY_OUT}, {_ALONE}"
        ) from error
    return True


def _detection(*, told: bool) -> str | None:
    """Where jax looks for peers, and for its own devices; None: everywhere that it knows.

    It tries Kubernetes last, by asking its server, which not every pod may do. Only a pod of an
    indexed Job can have peers there; if it was told of them, it need not ask.
    """
    others = ("TPU_WORKER_HOSTNAMES", "OMPI_MCA_orte_hnp_uri", "SLURM_STEP_NODELIST")
    if "KUBERNETES_SERVICE_HOST" not in os.environ or any(name in os.environ for name in others):
        return None
    return None if "JOB_COMPLETION_INDEX" in os.environ and not told else "deactivate"


def _check_nobody_else() -> None:
    """Raises UserError if a launcher has begun others, whom this process would not know of."""
    for name, size, rank in _LAUNCHERS:
        if os.environ.get(size, "1") != "1":
            raise UserError(
                f"{name} says that there are {os.environ[size]} processes ({size}), but not where"
                f" they meet. {_WAY_OUT} (here ${size} and ${rank}), {_ALONE}"
            )


def _check_address(coordinator: str, *, binds: bool) -> None:
    """Raises UserError where jax would crash: without a port, or with one in use here."""
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or int(port) >= 2**16:
        raise UserError(f"Expected --coordinator=HOST:PORT, got {coordinator}.")
    if binds:
        try:
            with socket.create_server(("", int(port))):
                pass
        except OSError as error:
            raise UserError(f"Cannot listen on port {port}: {error}. Choose another.") from error
