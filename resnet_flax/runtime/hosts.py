"""Several processes that train one run together: how they compare, agree, and part."""

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
from jax._src import distributed  # Its store works before there are devices.
from jax.experimental import multihost_utils

from resnet_flax.errors import ExplainedError, FaultError, TryAgainError, UserError, summary
from resnet_flax.runtime import environment, joining, parallel

_DAY = 24 * 3600 * 1000  # Milliseconds: a peer that is lost ends the wait.
_HEAD_START = 1.0  # Seconds.
_MOST_NAMED = 3
_comparisons = itertools.count()
# What a process says, and its exit status, when the runtime ends it.
_last_words = (joining.LOST, TryAgainError.exit_status)
_on_abort = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda _: _leave(*_last_words))


@contextlib.contextmanager
def together(
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    heartbeat_seconds: int,
) -> Iterator[None]:
    """Meets the other processes for the time of the context; uses no device yet.

    - `coordinator`: host:port of process 0. Without any of the three, jax finds the peers where it
      can (Cloud TPU, Slurm, Open MPI 4); elsewhere this process stays alone.
    - `num_processes`: 1 without the other two: alone, whatever a launcher says.
    - `heartbeat_seconds`: a peer not heard of for that long is lost.

    With several processes, an error ends this one at once, without waiting for its peers, and a
    lost peer ends it with exit status 75. Raises UserError if they cannot meet, or if they are not
    of the same program.
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
    """Meets within it; what is set then stays, unless this process turns out to be alone.

    The runtime aborts when it misses a peer, often from a thread of its own: Python's own signal
    handlers would run too late.
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
        # Unsure; the runtime misses a lost peer's heartbeat, and then aborts this process.
        time.sleep(1.5 * heartbeat_seconds)
    if isinstance(error, ExplainedError):
        _leave(str(error), error.exit_status)
    _leave(traceback.format_exc().rstrip(), 1)


def count() -> int:
    """How many processes there are; unlike jax.process_count(), it uses no device."""
    return distributed.global_state.num_processes or 1


def lost_peer(error: BaseException | None) -> bool:
    """Whether an error can be how a lost peer shows: some collective's."""
    while error is not None and count() > 1:
        text = str(error)
        if "gloo" in text.lower() or isinstance(error, TimeoutError):
            return True
        if isinstance(error, jax.errors.JaxRuntimeError):
            return not text.startswith(("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "UNIMPLEMENTED"))
        error = error.__cause__
    return False


def open_devices() -> None:
    """Begins to use this process's devices. Raises UserError unless those of all are alike."""
    with alike() as facts:
        facts |= parallel.open_devices()


def is_first() -> bool:
    """Whether this is the process that writes the records."""
    return jax.process_index() == 0


def agree(value: int) -> int:
    """The first process's value, in all of them; every process has to call it."""
    if count() == 1:
        return value
    return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


@contextlib.contextmanager
def alike() -> Iterator[dict[str, Any]]:
    """A block that every process goes through, and that ends alike in all of them.

    The block puts into the yielded dictionary what must be the same in all processes, in JSON
    types. Nothing in the block may wait for another process. An error in one process is raised
    there, and ends the block in the others too: they raise an error of the same exit status that
    says which process it was. Raises UserError in all of them if what they put in differs.
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
    """What the first process finds in what all of them have put in: a line and an exit status."""
    client, rank = distributed.global_state.client, distributed.global_state.process_id
    assert client is not None  # There are several.
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
        # The first has the store. Once it leaves, the runtime aborts the others, in many lines.
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
    """A line and an exit status; ("", 0) if all have put in the same and none has failed."""
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
    return f"Expected the same in all processes, got different {named}.", UserError.exit_status


def _leave(line: str, status: int = TryAgainError.exit_status) -> NoReturn:
    """Ends this process at once: a normal exit would wait for its peers."""
    with contextlib.suppress(Exception):  # Where nobody reads.
        sys.stdout.flush()
        os.write(2, f"{Path(sys.argv[0]).stem}: {line}\n".encode())
    os._exit(status)
