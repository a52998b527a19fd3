"""Several processes that train one run together: how they meet, agree, and part."""

import contextlib
import ctypes
import os
import signal
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

_C_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int)
_on_abort = _C_HANDLER(lambda _: _leave("Lost a peer. The same commands go on."))


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
        if jax.process_count() > 1:
            if isinstance(error, jax.errors.JaxRuntimeError):
                # A peer's death shows as an error of some collective, now or when the runtime
                # misses its heartbeat, which then aborts this process.
                if "gloo" not in str(error).lower():
                    time.sleep(1.5 * heartbeat_seconds)
                else:
                    _leave("Lost a peer. The same commands go on.")
            if isinstance(error, ExplainedError):
                _leave(str(error), error.exit_status)
            _leave(traceback.format_exc().rstrip(), 1)
        raise


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
    try:
        jax.distributed.initialize(
            coordinator, num_processes, process_id, heartbeat_timeout_seconds=heartbeat_seconds
        )
    except ValueError as error:
        if any(given):
            raise UserError(f"Cannot join the other processes: {error}") from error
        return  # Nothing here names any peers.
    if jax.process_count() > 1:
        # The runtime aborts when a peer is lost, from a thread of its own: Python's own signal
        # handlers would run too late.
        ctypes.CDLL(None).signal(signal.SIGABRT, _on_abort)


def _leave(line: str, status: int = TryAgainError.exit_status) -> NoReturn:
    """Ends this process at once: a normal exit would wait for its peers."""
    sys.stdout.flush()
    os.write(2, f"{Path(sys.argv[0]).stem}: {line}\n".encode())
    os._exit(status)
