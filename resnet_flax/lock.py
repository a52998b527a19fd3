"""One writer a folder: a lock that names its holder, and is taken over once that is dead."""

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from resnet_flax.errors import FaultError, TryAgainError, UserError

BEAT_SECONDS = 5.0
STALE_SECONDS = 30.0


class FolderLock:
    """`lock.json` in a folder, held by one process at a time.

    A holder on this machine is alive while its process is. Of one elsewhere only the heartbeat is
    seen, the file's modification time: who wants the lock watches it for `STALE_SECONDS`, so
    that no clocks are compared. A holder that was frozen and has lost its lock finds out in
    `check`, which every write has to pass.
    """

    def __init__(self, folder: Path):
        self.path = folder / "lock.json"
        self._holder = {
            "host": socket.gethostname(),
            "machine": _machine(),
            "pid": os.getpid(),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "process_created": psutil.Process().create_time(),
            "token": uuid.uuid4().hex,
        }
        self._released = threading.Event()

    def acquire(self, say: Callable[[str], None]) -> None:
        """Takes the lock. Raises TryAgainError, naming the holder, if that is alive."""
        while not self._create():
            holder = _read(self.path)
            if holder is None and self.path.is_symlink():
                raise UserError(f"{self.path} is a link to nothing. Delete it.")
            if holder is not None and self._is_alive(holder, say):
                raise TryAgainError(
                    f"{self.path.parent} is in use by process {holder.get('pid')} on"
                    f" {holder.get('host')}, started {holder.get('started')}. Wait for it to end,"
                    " or stop it."
                )
            self._remove(holder)
        threading.Thread(target=self._beat, daemon=True, name="lock heartbeat").start()

    def check(self) -> None:
        """Raises FaultError unless the lock is still this process's."""
        holder = _read(self.path)
        if holder is None:
            raise FaultError(
                f"{self.path} is gone: the run's folder was moved or deleted, or its lock was."
                " Nothing more is written."
            )
        if holder.get("token") != self._holder["token"]:
            raise FaultError(
                f"{self.path.parent} was taken over by process {holder.get('pid')} on"
                f" {holder.get('host')}. Nothing more is written here."
            )

    def release(self) -> None:
        """Gives the lock back; not if it has become another's."""
        self._released.set()
        with contextlib.suppress(OSError):
            self._remove(self._holder)

    def _create(self) -> bool:
        with _alone(self.path.parent):
            try:
                file = self.path.open("x")
            except FileExistsError:
                return False
            try:
                with file:
                    json.dump(self._holder, file)
            except OSError:
                self.path.unlink()
                raise
        return True

    def _remove(self, holder: dict[str, Any] | None) -> None:
        """Deletes the lock of that holder, and no other's."""
        with _alone(self.path.parent):
            if holder is not None and _read(self.path) == holder:
                self.path.unlink()

    def _is_alive(self, holder: dict[str, Any], say: Callable[[str], None]) -> bool:
        alive = _process_is_alive(holder)
        if alive is not None:
            return alive
        say(
            f"{self.path} is held by process {holder.get('pid')} on {holder.get('host')}; watching"
            f" its heartbeat for up to {STALE_SECONDS:.0f} s."
        )
        return self._beats()

    def _beats(self) -> bool:
        first, end = _modified(self.path), time.monotonic() + STALE_SECONDS
        while time.monotonic() < end:
            time.sleep(0.2)
            if _modified(self.path) != first:
                return self.path.exists()
        return False

    def _beat(self) -> None:
        while not self._released.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError, FaultError):
                self.check()
                os.utime(self.path)


class Heartbeat:
    """Whether a folder has a living writer, for one who looks now and then and writes nothing.

    A holder on another machine counts as alive until its heartbeat has stood still for
    `STALE_SECONDS` under these looks.
    """

    def __init__(self, folder: Path):
        self._path = folder / "lock.json"
        self._last: int | None = None
        self._changed = 0.0

    def is_alive(self) -> bool:
        try:
            holder = _read(self._path)
            if holder is None:
                return False
            alive = _process_is_alive(holder)
            if alive is not None:
                return alive
            modified = _modified(self._path)
        except OSError:
            return False
        if modified != self._last:
            self._last, self._changed = modified, time.monotonic()
        return time.monotonic() - self._changed < STALE_SECONDS


def _read(path: Path) -> dict[str, Any] | None:
    """The holder, None if there is none; of a file that a crash cut off, what it says: {}."""
    try:
        holder = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError):
        return {}
    return holder if isinstance(holder, dict) else {}


def _process_is_alive(holder: dict[str, Any]) -> bool | None:
    """None if it cannot be seen from here."""
    if holder.get("machine") != _machine():
        return None
    try:
        process = psutil.Process(holder["pid"])
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        created = process.create_time() - holder["process_created"]
        if abs(created) < 2:  # Seconds; the wall clock may be set while a process lives.
            return True
    except psutil.NoSuchProcess:
        return False
    except (KeyError, TypeError, ValueError):
        return None
    return False if holder["pid"] == os.getpid() else None


def _modified(path: Path) -> int | None:
    try:
        # Opened, because network file systems remember what `stat` said.
        with path.open() as file:
            return os.fstat(file.fileno()).st_mtime_ns
    except FileNotFoundError:
        return None


def _machine() -> str:
    """What processes have in common that see each other: a boot, and a container's processes."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # Not Linux.
        return socket.gethostname()


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keeps other processes out of the lock file, on file systems that can."""
    directory = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(directory, fcntl.LOCK_EX)
        yield
    finally:
        os.close(directory)
