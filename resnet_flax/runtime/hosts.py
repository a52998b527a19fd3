"""Functions for several processes that train one run: they meet, compare, agree and end."""

import contextlib
import ctypes
import itertools
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
from flax import traverse_util
from jax._src import distributed  # Its store works before devices are opened.
from jax.experimental import multihost_utils

from resnet_flax.errors import ExplainedError, FaultError, TryAgainError, UserError, summary
from resnet_flax.runtime import environment, joining, parallel

_DAY = 24 * 3600 * 1000  # Milliseconds. If a peer is lost, the wait ends earlier.
_HEAD_START = 1.0  # Seconds.
_MOST_NAMED = 3
_comparisons = itertools.count()
# The last line and the exit status of a process that the runtime aborts.
_last_words = (joining.LOST, TryAgainError.exit_status)
_on_abort = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda _: _leave(*_last_words))


@contextlib.contextmanager
def together(
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    heartbeat_seconds: int,
) -> Iterator[None]:
    """Joins the other processes of a run for the time of the context. Uses no device yet.

    - `coordinator`: host:port of process 0. If this and the next two are None, jax finds the peers
      on Cloud TPU, Slurm and Open MPI 4. Elsewhere this process stays alone.
    - `num_processes`: 1 without the other two means alone, even if a launcher says otherwise.
    - `process_id`: the number of this process, from 0.
    - `heartbeat_seconds`: a peer that is silent for this long is lost.

    With several processes, an error ends this process at once: it does not wait for its peers. If a
    peer is lost, this process ends with exit status 75. Raises UserError if the processes cannot
    meet or run different programs.
    """
    try:
        with _abort_handler():
            joining.join(coordinator, num_processes, process_id, heartbeat_seconds)
        with alike() as facts:
            facts |= environment.program()
        yield
    except (Exception, SystemExit) as error:
        if count() == 1:
            raise
        _part(error, heartbeat_seconds)


@contextlib.contextmanager
def _abort_handler() -> Iterator[None]:
    """Sets a handler for SIGABRT. It stays after the context, unless this process is alone.

    The runtime aborts this process when a peer is lost, often from a thread of its own. Python's
    signal handlers would run too late.
    """
    set_signal = ctypes.CDLL(None).signal
    set_signal.restype = ctypes.c_void_p
    set_signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
    before = set_signal(signal.SIGABRT, ctypes.cast(_on_abort, ctypes.c_void_p))
    try:
        yield
    finally:
        if count() == 1:
            set_signal(signal.SIGABRT, before)


def _part(error: BaseException, heartbeat_seconds: int) -> NoReturn:
    if "gloo" in str(error).lower():
        _leave(joining.LOST)
    if lost_peer(error):
        # If a peer is really lost, the runtime notices and aborts this process meanwhile.
        time.sleep(1.5 * heartbeat_seconds)
    if isinstance(error, ExplainedError):
        _leave(str(error), error.exit_status)
    _leave(traceback.format_exc().rstrip(), 1)


def count() -> int:
    """The number of processes. Unlike jax.process_count(), this uses no device."""
    return distributed.global_state.num_processes or 1


def lost_peer(error: BaseException | None) -> bool:
    """Whether a lost peer may have caused an error. Errors of collectives count."""
    while error is not None and count() > 1:
        text = str(error)
        if "gloo" in text.lower() or isinstance(error, TimeoutError):
            return True
        if isinstance(error, jax.errors.JaxRuntimeError):
            return not text.startswith(("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "UNIMPLEMENTED"))
        error = error.__cause__
    return False


def open_devices() -> None:
    """Opens this process's devices. Raises UserError if other processes have other devices."""
    with alike() as facts:
        facts |= parallel.open_devices()


def is_first() -> bool:
    """Whether this is the process that writes the records."""
    return jax.process_index() == 0


def agree(value: int) -> int:
    """Returns the first process's value in all processes. Every process must call it."""
    if count() == 1:
        return value
    return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def of_first(tree: Any) -> Any:
    """The first process's numbers in all processes, as float32. Every process must call it."""
    numbers = jax.tree.map(np.float32, tree)
    return numbers if count() == 1 else multihost_utils.broadcast_one_to_all(numbers)


@contextlib.contextmanager
def alike() -> Iterator[dict[str, Any]]:
    """A block that every process runs, and that succeeds or fails in all of them.

    The block adds facts, in JSON types, to the yielded dictionary. They must be equal in all
    processes. If they differ, every process raises UserError. If the block fails in one process,
    its error is raised there. The others raise an error with the same exit status that names that
    process. No code in the block may wait for another process.
    """
    facts: dict[str, Any] = {}
    if count() == 1:
        yield facts
        return
    own: Exception | None = None
    try:
        yield facts
    except Exception as error:
        own = error
    line, status = _compared(facts, own)
    if own is not None:
        raise own
    if status:
        raise {2: UserError, 75: TryAgainError}.get(status, FaultError)(line)


def _compared(facts: dict[str, Any], own: Exception | None) -> tuple[str, int]:
    """The first process's verdict on the facts of all: a line and an exit status."""
    client, rank = distributed.global_state.client, distributed.global_state.process_id
    assert client is not None  # There are several processes.
    name = f"resnet_flax/alike/{next(_comparisons)}"
    answer = {"facts": facts, "error": summary(own) if own else "", "status": _status(own)}
    client.key_value_set(f"{name}/{rank}", json.dumps(answer))
    if rank == 0:
        keys = [f"{name}/{each}" for each in range(count())]
        answers = [json.loads(client.blocking_key_value_get(key, _DAY)) for key in keys]
        client.key_value_set(f"{name}/verdict", json.dumps(_verdict(answers)))
        for key in keys:
            client.key_value_delete(key)
    line, status = json.loads(client.blocking_key_value_get(f"{name}/verdict", _DAY))
    if status:
        # Process 0 has the store. When it ends, the runtime aborts the others with many lines.
        if status != TryAgainError.exit_status:
            global _last_words
            _last_words = (str(own) if own else line, _status(own) or status)
        client.wait_at_barrier(name, _DAY)
        if rank == 0:
            time.sleep(_HEAD_START)
    return line, status


def _status(error: Exception | None) -> int:
    return getattr(error, "exit_status", 1) if error else 0


def _verdict(answers: Sequence[dict[str, Any]]) -> tuple[str, int]:
    """A line and an exit status: ("", 0) if all facts are equal and no process failed."""
    for rank, answer in enumerate(answers):
        if answer["error"]:
            return f"Process {rank}: {answer['error']}", answer["status"]
    facts = [traverse_util.flatten_dict(answer["facts"], sep=".") for answer in answers]
    differences = []
    for name in sorted(set().union(*facts)):
        values = [of.get(name, "absent") for of in facts]
        others = (f"{value!r} in process {rank}" for rank, value in enumerate(values))
        other = next((o for o, v in zip(others, values, strict=True) if v != values[0]), None)
        if other:
            differences.append(f"{name} ({values[0]!r} in process 0, {other})")
    if not differences:
        return "", 0
    more = len(differences) - _MOST_NAMED
    named = "; ".join(differences[:_MOST_NAMED]) + (f"; and {more} more" if more > 0 else "")
    return f"Expected equal values in all processes, got different {named}.", UserError.exit_status


def _leave(line: str, status: int = TryAgainError.exit_status) -> NoReturn:
    """Ends this process at once. A normal exit would wait for its peers."""
    with contextlib.suppress(Exception):  # Nobody may be reading.
        sys.stdout.flush()
        os.write(2, f"{Path(sys.argv[0]).stem}: {line}\n".encode())
    os._exit(status)
