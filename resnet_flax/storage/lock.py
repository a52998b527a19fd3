"""A lock that gives a folder a single writer. It names its holder.

Another process can take the lock over when its holder is dead.
"""

import contextlib
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from resnet_flax.errors import FaultError, TryAgainError
from resnet_flax.storage.bucket import BucketPath
from resnet_flax.storage.lock_stores import Holder, lock_store

BEAT_SECONDS = 5.0
STALE_SECONDS = 30.0
OLD_SECONDS = 3600.0  # More than clocks of two machines differ.

_GONE = (
    "{} is gone: the run's folder was moved or deleted, or the lock was deleted. This process"
    " writes nothing more."
)


class FolderLock:
    """The lock of a folder. One process at a time holds it.

    - A holder on this machine is alive while its process is alive.
    - A holder on another machine, or a hidden process, shows only its heartbeat: the file's
      modification time or the object's content changes. A process that wants the lock watches for
      such a change for `STALE_SECONDS`. So no clocks are compared.

    Every write to the folder happens inside `held`. There, a holder that was frozen and lost its
    lock finds out.
    """

    def __init__(self, folder: Path | BucketPath):
        self._folder, self.store = folder, lock_store(folder)
        own = _seen(os.getpid())
        self._holder = {
            "host": socket.gethostname(),
            "machine": machine(),
            "pid": os.getpid(),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "process_created": own.created if own else None,
            "token": uuid.uuid4().hex,
        }
        self._released = threading.Event()
        self._beating = threading.Thread(target=self._beat, daemon=True, name="lock heartbeat")

    def acquire(self, say: Callable[[str], None]) -> None:
        """Takes the lock. Raises TryAgainError, which names the holder, if that is alive or frozen.

        `say`: called with a line if this has to wait.
        """
        while not self._is_taken(say):
            pass
        self._beating.start()

    def _is_taken(self, say: Callable[[str], None]) -> bool:
        """Tries to take the lock. False if another process was faster."""
        holder = self.store.read()
        try:
            if holder == {}:  # A crash cut it off, or it is being written at this moment.
                with self._alone():
                    holder = self.store.read()
            if holder is not None and self._is_alive(holder, say):
                raise TryAgainError(
                    f"{self._folder} is in use by {_name(holder)}, started {holder.get('started')}."
                    " Wait for it to end, or stop it. If this folder is a copy, delete the lock in"
                    " it."
                )
            with self._alone():
                return self.store.take(self._holder, holder)
        except BlockingIOError:
            raise TryAgainError(
                f"{self._folder}: {_name(holder or {})} is in the middle of a write. It may be"
                " frozen: stop it, or wait for it to end."
            ) from None

    def _alone(self) -> AbstractContextManager[None]:
        """A context to look at the lock and take it, while nobody else does."""
        self.store.prepare()
        return self.store.alone(STALE_SECONDS)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """A context for each write: nobody takes the lock over before it ends.

        Raises FaultError if this process no longer holds the lock. lock_stores.py lists the
        exceptions in buckets and on file systems that cannot lock.
        """
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(self.store.alone())
            except FileNotFoundError as error:
                raise FaultError(_GONE.format(error.filename)) from None
            self.check_held()
            yield

    def check_held(self) -> None:
        """Raises FaultError unless this process still holds the lock."""
        holder = self.store.read()
        if holder is None:
            raise FaultError(_GONE.format(self.store))
        if holder.get("token") != self._holder["token"]:
            raise FaultError(
                f"{self._folder} was taken over by {_name(holder)}. This process stops writing."
            )

    def release(self) -> None:
        """Gives the lock back, unless another process has taken it over."""
        self._released.set()
        self._beating.join()
        with contextlib.suppress(OSError), self.store.alone(STALE_SECONDS):
            self.store.give_back()

    def _is_alive(self, holder: Holder, say: Callable[[str], None]) -> bool:
        alive = _process_is_alive(holder)
        if alive is not None:
            return alive
        say(
            f"{self.store} is held by {_name(holder)}; watching its heartbeat for up to"
            f" {STALE_SECONDS:.0f} s."
        )
        return self._beats()

    def _beats(self) -> bool:
        first, end = self.store.sign(), time.monotonic() + STALE_SECONDS
        while time.monotonic() < end:
            time.sleep(0.2)
            if self.store.sign() != first:
                holder = self.store.read()
                return holder is not None and not holder.get("released")
        return False

    def _beat(self) -> None:
        while not self._released.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError, FaultError):
                self.check_held()
                self.store.beat()


class Heartbeat:
    """Tells a reader, who asks repeatedly and writes nothing, whether a folder has a live writer.

    A holder on another machine, or one of before a restart, counts as alive until its heartbeat has
    not changed for `STALE_SECONDS` of this reader's time, or for an hour by the clocks.
    """

    def __init__(self, folder: Path | BucketPath):
        self.store = lock_store(folder)
        self._last: Any = None
        self._changed = 0.0

    def is_alive(self) -> bool:
        try:
            holder = self.store.read()
            if holder is None:
                return False
            alive = _process_is_alive(holder)
            if alive is not None:
                return alive
            sign = self.store.sign()
            if self.store.age() > OLD_SECONDS:
                return False
        except OSError:
            return False
        if sign != self._last:
            self._last, self._changed = sign, time.monotonic()
        return time.monotonic() - self._changed < STALE_SECONDS


def _name(holder: Holder) -> str:
    return f"process {holder.get('pid')} on {holder.get('host')}"


def _process_is_alive(holder: Holder) -> bool | None:
    """Whether the holder's process is alive.

    None if this process cannot tell: a process may be hidden, or may have got the same number.
    """
    if holder.get("released"):
        return False
    pid, created = holder.get("pid"), holder.get("process_created")
    if holder.get("machine") != machine() or not isinstance(pid, int) or not 0 < pid < 2**31:
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:  # Unlike /proc, this hides no process.
        return False
    except OSError:
        pass  # The process exists, but belongs to another user.
    seen = _seen(pid)
    if seen is None or not isinstance(created, int | float):
        return None
    if abs(seen.created - created) >= 2:  # Seconds; somebody may have set the clock.
        return False if pid == os.getpid() else None
    return not seen.is_zombie


class _Seen(NamedTuple):
    """Facts about a process."""

    created: float
    """Time of its start, in seconds since 1970."""
    is_zombie: bool


def _seen(pid: int) -> _Seen | None:
    """Facts about a process. None if they cannot be seen from here."""
    try:
        # /proc may show another container, in which numbers mean other processes.
        if sys.platform == "linux" and str(Path("/proc/self").readlink()) != str(os.getpid()):
            return None
        process = psutil.Process(pid)
        return _Seen(process.create_time(), process.status() == psutil.STATUS_ZOMBIE)
    except (OSError, psutil.Error):
        return None


def machine() -> str:
    """An id of the boot and the container. With the same id, process numbers mean the same.

    If it is unknown, each process gets an id of its own.
    """
    if sys.platform != "linux":
        return f"{socket.gethostname()} {uuid.getnode()}"
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # There is no /proc.
        return uuid.uuid4().hex
