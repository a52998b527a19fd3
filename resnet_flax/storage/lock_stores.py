"""The places where a folder's lock is kept: a file on a disk, or objects in a bucket.

On a disk the lock is `lock.json`; its holder deletes it at the end. Beside it lies `.lock`, an
empty file that one process at a time locks with `flock`. A process holds `.lock` while it checks
`lock.json` and writes, and while it takes the lock over. So nobody can take the lock over during a
write, even if the writer is frozen. Another process waits for it, and then gives up.

In a bucket, nothing can be deleted or renamed on a condition. There, the lock is the last of the
objects `lock/000001.json`, `lock/000002.json`, ... A process creates the next number when the last
holder has given the lock back or is dead. The storage must create an object only if there is none,
and must list it at once. S3 and GCS do both, so each number goes to one process. When there is a
later number, the check before each write fails.

An exception remains in buckets, and on file systems without `flock` (some network ones). There, the
check and the write after it are two steps. Suppose that a holder is frozen between them for so long
that it loses its lock. When it wakes, it finishes that one write. It may then:

- replace a file of records by an older one, or add a line to it. In a bucket, the next record or
  status repairs this;
- write a file of a checkpoint. The file then does not match its sums, the checkpoint is set aside
  as damaged, and the one before it is used.
"""

import contextlib
import fcntl
import json
import math
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

from resnet_flax.errors import UserError
from resnet_flax.storage.bucket import BucketPath
from resnet_flax.storage.regular import open_regular, read_regular

LARGEST = 2**16  # Bytes of a lock.
Holder = dict[str, Any]


class LockStore(Protocol):
    """A place where a lock is kept."""

    def prepare(self) -> None:
        """Makes what `alone` needs. Its holder never calls it again."""

    def alone(self, patience: float = math.inf) -> AbstractContextManager[None]:
        """A context in which only one process can be at a time, where the storage can do that.

        Raises BlockingIOError if another process is still inside after `patience` seconds, and
        FileNotFoundError if what it needs is gone: it never makes a deleted folder's files anew.
        """

    def read(self) -> Holder | None:
        """The holder. None if there is none; {} if a crash cut the lock off."""

    def take(self, holder: Holder, instead_of: Holder | None) -> bool:
        """Gives the lock to `holder`. False if it is no longer as read, `instead_of`."""

    def give_back(self) -> None:
        """Frees the lock. Does nothing if another process has taken it over."""

    def sign(self) -> Any:
        """A value that changes with each `beat` of the holder. None if there is no lock."""

    def age(self) -> float:
        """Seconds since the last `beat`, by the clocks of two machines. 0 if it is not known."""

    def beat(self) -> None:
        """Shows that the holder is alive. Only the holder calls it."""


def lock_store(folder: Path | BucketPath) -> LockStore:
    return Numbered(folder) if isinstance(folder, BucketPath) else File(folder)


class File:
    """`lock.json` and `.lock`. `.lock` is never deleted: a new file would be another lock."""

    def __init__(self, folder: Path):
        self._path, self._gate = folder / "lock.json", folder / ".lock"
        self._holder: Holder = {}
        self._own = -1
        """Descriptor of the holder's own file, so that a beat never touches another holder's."""

    def __str__(self) -> str:
        return str(self._path)

    def prepare(self) -> None:
        os.close(os.open(self._gate, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666))

    @contextlib.contextmanager
    def alone(self, patience: float = math.inf) -> Iterator[None]:
        # Not the folder itself: NFS locks only files that are open for writing.
        descriptor = os.open(self._gate, os.O_RDWR | os.O_NOFOLLOW)
        try:
            _flock(descriptor, patience)
            yield
        finally:
            os.close(descriptor)

    def read(self) -> Holder | None:
        try:
            return _parsed(read_regular(self._path, LARGEST))
        except FileNotFoundError:
            return None

    def take(self, holder: Holder, instead_of: Holder | None) -> bool:
        if instead_of is not None:
            if self.read() != instead_of:
                return False
            self._path.unlink()
        try:
            self._own = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            if self._path.is_symlink() and not self._path.exists():
                raise UserError(f"{self._path} is a link to nothing. Delete it.") from None
            return False
        try:
            os.write(self._own, _encoded(holder))
        except OSError:
            os.close(self._own)
            self._path.unlink()
            raise
        self._holder = holder
        return True

    def give_back(self) -> None:
        os.close(self._own)
        if self.read() == self._holder:
            self._path.unlink()

    def sign(self) -> int | None:
        try:
            # Opened first, because network file systems cache the result of `stat`.
            with open_regular(self._path) as file:
                return os.fstat(file.fileno()).st_mtime_ns
        except FileNotFoundError:
            return None

    def age(self) -> float:
        sign = self.sign()
        return 0.0 if sign is None else time.time() - sign / 1e9

    def beat(self) -> None:
        os.utime(self._own)


class Numbered:
    """`lock/000001.json` and so on. The last one is the lock.

    Only the process that created an object writes it again: at each beat, and when it frees the
    lock. The last object is never deleted, so that no number is used twice.
    """

    def __init__(self, folder: BucketPath):
        self._folder = folder / "lock"
        self._holder: Holder = {}
        self._number = 0
        """The number of the holder's own object."""
        self._read_number = 0
        """The number of the object that was read last."""

    def __str__(self) -> str:
        return str(self._folder)

    def prepare(self) -> None:
        pass

    def alone(self, patience: float = math.inf) -> AbstractContextManager[None]:
        return contextlib.nullcontext()

    def take(self, holder: Holder, instead_of: Holder | None) -> bool:
        number = self._read_number + 1
        if self._last() >= number or not self._is_created(number, holder):
            return False
        if self._last() > number:  # This process was too slow: others came and went.
            return False
        self._number, self._holder = number, holder
        with contextlib.suppress(OSError):  # Old objects do no harm.
            for path in self._folder.glob("*.json"):
                if path.name < self._path(number).name:
                    path.unlink()
        return True

    def _is_created(self, number: int, holder: Holder) -> bool:
        path = self._path(number)
        if path.create(_encoded(holder)):
            return True
        try:  # Perhaps the answer to a write was lost, and its repetition found its own object.
            return _parsed(path.read_bytes()) == holder
        except FileNotFoundError:
            return False

    def read(self) -> Holder | None:
        number = self._last()  # A local variable: the heartbeat's thread also reads.
        self._read_number = number
        if number == self._number:
            return self._holder or None
        try:
            return _parsed(self._path(number).read_bytes())
        except FileNotFoundError:
            return None

    def give_back(self) -> None:
        if self._last() == self._number:
            self._path(self._number).write_bytes(_encoded(self._holder | {"released": True}))

    def sign(self) -> Any:
        holder = self.read()
        return holder and (self._read_number, holder.get("beats"), holder.get("released"))

    def age(self) -> float:
        return 0.0

    def beat(self) -> None:
        self._holder = self._holder | {"beats": self._holder.get("beats", 0) + 1}
        self._path(self._number).write_bytes(_encoded(self._holder))

    def _path(self, number: int) -> BucketPath:
        return self._folder / f"{number:06}.json"

    def _last(self) -> int:
        """The number of the last object, or 0."""
        names = (path.stem for path in self._folder.glob("*.json"))
        return max((int(name) for name in names if name.isdecimal()), default=0)


def _encoded(holder: Holder) -> bytes:
    return json.dumps(holder).encode()


def _parsed(content: bytes) -> Holder:
    try:
        holder = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return holder if isinstance(holder, dict) else {}


def _flock(descriptor: int, patience: float) -> None:
    """Locks a file. Does nothing on file systems without `flock`."""
    end = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:  # PermissionError: CIFS.
            if time.monotonic() >= end:
                raise BlockingIOError from error
            time.sleep(0.01)
        except OSError:
            return
        else:
            return
