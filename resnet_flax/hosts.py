"""Several processes that train one run together: how they meet, agree, and part."""

import contextlib
import ctypes
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from resnet_flax.errors import ExplainedError, TryAgainError, UserError

MEET_SECONDS = 300
_LOST = f"Lost a peer, or met none within {MEET_SECONDS} s; the same commands go on."
_on_abort = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda _: _leave(_LOST))


@contextlib.contextmanager
def together(
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    heartbeat_seconds: int,
) -> Iterator[None]:
    """Meets the other processes for the time of the context; before the first use of a device.

    - `coordinator`: host:port of process 0. Without any of the three, jax finds the peers where it
      can (Cloud TPU, Slurm, Open MPI); elsewhere this process stays alone.
    - `heartbeat_seconds`: a peer not heard of for that long is lost.

    With several processes, an error ends this one at once, without waiting for its peers, and a
    lost peer ends it with exit status 75. Raises UserError if they cannot meet.
    """
    _join(coordinator, num_processes, process_id, heartbeat_seconds)
    try:
        yield
    except Exception as error:
        if jax.process_count() == 1:
            raise
        if "gloo" in str(error).lower():
            _leave(_LOST)
        if lost_peer(error):
            # Unsure; the runtime misses a lost peer's heartbeat, and then aborts this process.
            time.sleep(1.5 * heartbeat_seconds)
        if isinstance(error, ExplainedError):
            _leave(str(error), error.exit_status)
        _leave(traceback.format_exc().rstrip(), 1)


def lost_peer(error: BaseException | None) -> bool:
    """Whether an error can be how a lost peer shows: some collective's."""
    while error is not None and jax.process_count() > 1:
        text = str(error)
        if "gloo" in text.lower() or isinstance(error, TimeoutError):
            return True
        if isinstance(error, jax.errors.JaxRuntimeError):
            return not text.startswith(("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "UNIMPLEMENTED"))
        error = error.__cause__
    return False


def is_first() -> bool:
    """Whether this is the process that writes the records."""
    return jax.process_index() == 0


def agree(value: int) -> int:
    """The first process's value, in all of them; every process has to call it."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def _join(
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    heartbeat_seconds: int,
) -> None:
    given = [value is not None for value in (coordinator, num_processes, process_id)]
    if any(given) and not all(given):
        raise UserError(
            "Expected all of --coordinator=HOST:PORT, --num_processes and --process_id, or none,"
            f" got {coordinator}, {num_processes} and {process_id}."
        )
    if coordinator is not None:
        _check_address(coordinator, binds=process_id == 0)
    # A task that is alone would get but one of its GPUs from jax's detection.
    elif os.environ.get("SLURM_NTASKS") == "1":
        return
    # The runtime aborts when it misses a peer, often from a thread of its own: Python's own signal
    # handlers would run too late.
    set_signal = ctypes.CDLL(None).signal
    set_signal.restype = ctypes.c_void_p
    set_signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    before = set_signal(signal.SIGABRT, ctypes.cast(_on_abort, ctypes.c_void_p))
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            initialization_timeout=MEET_SECONDS,
            heartbeat_timeout_seconds=heartbeat_seconds,
        )
    except ValueError as error:
        set_signal(signal.SIGABRT, before)
        if any(given) or "coordinator_address should be defined" not in str(error):
            raise UserError(f"Cannot join the other processes: {error}") from error
        return  # Nothing here names any peers.
    if jax.process_count() == 1:
        set_signal(signal.SIGABRT, before)


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


def _leave(line: str, status: int = TryAgainError.exit_status) -> NoReturn:
    """Ends this process at once: a normal exit would wait for its peers."""
    sys.stdout.flush()
    os.write(2, f"{Path(sys.argv[0]).stem}: {line}\n".encode())
    os._exit(status)
