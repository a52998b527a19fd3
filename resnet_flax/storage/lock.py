"""One writer a folder: a lock that names its holder, and is taken over once that is dead."""

import contextlib
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from resnet_flax.errors import FaultError, TryAgainError
from resnet_flax.storage.bucket import BucketPath
from resnet_flax.storage.lock_stores import Holder, lock_store

BEAT_SECONDS = 5.0
STALE_SECONDS = 30.0


class FolderLock:
    """The lock of a folder, held by one process at a time.

    A holder on this machine is alive while its process is. Of one elsewhere, or hidden, only the
    heartbeat is seen, by the file's modification time or the object's content: who wants the lock
    watches it for `STALE_SECONDS`, so that no clocks are compared. All that is written to the
    folder is written inside `held`, where a holder that has lost its lock, frozen, finds out.
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
        """Takes the lock. Raises TryAgainError, naming the holder, if that is alive or frozen."""
        while not self._is_taken(say):
            pass
        self._beating.start()

    def _is_taken(self, say: Callable[[str], None]) -> bool:
        """False if another came first."""
        holder = self.store.read()
        try:
            if holder == {}:  # Cut off by a crash, unless it is being written just now.
                with self.store.alone(STALE_SECONDS):
                    holder = self.store.read()
            if holder is not None and self._is_alive(holder, say):
                raise TryAgainError(
                    f"{self._folder} is in use by {_name(holder)}, started {holder.get('started')}."
                    " Wait for it to end, or stop it."
                )
            with self.store.alone(STALE_SECONDS):
                return self.store.take(self._holder, holder)
        except BlockingIOError:
            raise TryAgainError(
                f"{self._folder}: {_name(holder or {})} is in the middle of a write. It may be"
                " frozen: stop it, or wait for it to end."
            ) from None

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """To write in: nobody takes the lock over before the context ends.

        Raises FaultError if the lock is not this process's any more. What remains uncertain, in
        buckets and where the file system cannot lock, stands in lock_stores.py.
        """
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(FileNotFoundError):  # Then the lock is gone, too.
                stack.enter_context(self.store.alone())
            self.check_held()
            yield

    def check_held(self) -> None:
        """Raises FaultError unless the lock is still this process's."""
        holder = self.store.read()
        if holder is None:
            raise FaultError(
                f"{self.store} is gone: the run's folder was moved or deleted, or its lock was."
                " Nothing more is written."
            )
        if holder.get("token") != self._holder["token"]:
            raise FaultError(
                f"{self._folder} was taken over by {_name(holder)}. Nothing more is written here."
            )

    def release(self) -> None:
        """Gives the lock back; not if it has become another's."""
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
    """Whether a folder has a living writer, for one who looks now and then and writes nothing.

    A holder on another machine counts as alive until its heartbeat has stood still for
    `STALE_SECONDS` under these looks.
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
        except OSError:
            return False
        if sign != self._last:
            self._last, self._changed = sign, time.monotonic()
        return time.monotonic() - self._changed < STALE_SECONDS


def _name(holder: Holder) -> str:
    return f"process {holder.get('pid')} on {holder.get('host')}"


def _process_is_alive(holder: Holder) -> bool | None:
    """None if it cannot be told from here, where a process may be hidden, or may be another's."""
    if holder.get("released"):
        return False
    pid, created = holder.get("pid"), holder.get("process_created")
    if holder.get("machine") != machine() or not isinstance(pid, int) or not 0 < pid < 2**31:
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:  # Unlike /proc, this hides nobody.
        return False
    except OSError:
        pass  # There, but another user's.
    seen = _seen(pid)
    if seen is None or not isinstance(created, int | float):
        return None
    if abs(seen.created - created) >= 2:  # Seconds; the wall clock may be set meanwhile.
        return False if pid == os.getpid() else None
    return not seen.is_zombie


class _Seen(NamedTuple):
    """A process."""

    created: float
    """In seconds since 1970."""
    is_zombie: bool


def _seen(pid: int) -> _Seen | None:
    """None if it cannot be seen from here."""
    try:
        # /proc may be that of other processes, whose numbers mean others.
        if sys.platform == "linux" and str(Path("/proc/self").readlink()) != str(os.getpid()):
            return None
        process = psutil.Process(pid)
        return _Seen(process.create_time(), process.status() == psutil.STATUS_ZOMBIE)
    except (OSError, psutil.Error):
        return None


def machine() -> str:
    """What processes have in common whose numbers mean the same: a boot, and a container.

    Where that is not known, nothing: each is on a machine of its own.
    """
    if sys.platform != "linux":
        return f"{socket.gethostname()} {uuid.getnode()}"
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # Without /proc.
        return uuid.uuid4().hex
