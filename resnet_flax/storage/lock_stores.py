"""Where a folder's lock is kept, and how writes stay within it.

On a disk it is `lock.json`, deleted when it is given back. Beside it lies `.lock`, empty, which the
operating system locks for one process at a time: for each write, together with the look at
`lock.json` before it, and for taking the lock over. So nobody is overtaken inside a write, not even
when it is frozen there: who wants the folder waits, and gives up.

In a bucket, where nothing is deleted or renamed on a condition, it is the last of
`lock/000001.json`, `lock/000002.json`, ...: a process creates the next number once the last holder
has given it back or is dead. Storage that creates an object only where there is none, and lists at
once what was created (S3 and GCS do both), gives each number to one process. From the moment that
there is a later number, the look before each write fails.

What remains: in a bucket, and on file systems without `flock` (some network ones), that look and
the write after it are not one act. A holder that is frozen between the two for so long that it
loses its lock finishes that one write when it wakes. It may replace a record's file by an older
one, or add a line to it; or put a file of a checkpoint, which then does not match its sums and is
set aside, and the one before is used. In a bucket the next record, or state, mends the former.
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

LARGEST = 2**16  # Bytes.
Holder = dict[str, Any]


class LockStore(Protocol):
    """Where a lock is kept."""

    def alone(self, patience: float = math.inf) -> AbstractContextManager[None]:
        """Keeps other processes out of `alone`, where that is possible, as long as it lasts.

        Raises BlockingIOError if one is still in there after `patience` seconds.
        """

    def read(self) -> Holder | None:
        """The holder, None if there is none; of what a crash cut off, what it says: {}."""

    def take(self, holder: Holder, instead_of: Holder | None) -> bool:
        """Makes the lock this holder's, where that one was read; false if there is another."""

    def give_back(self) -> None:
        """Makes room for others. Does nothing if the lock is another's by now."""

    def sign(self) -> Any:
        """Another one after each `beat` of the holder; None if there is none."""

    def beat(self) -> None:
        """Of the holder alone."""


def lock_store(folder: Path | BucketPath) -> LockStore:
    return Numbered(folder) if isinstance(folder, BucketPath) else File(folder)


class File:
    """`lock.json`, and `.lock`, which stays: another file of its name would be another lock."""

    def __init__(self, folder: Path):
        self._path, self._gate = folder / "lock.json", folder / ".lock"
        self._holder: Holder = {}
        self._own = -1
        """A descriptor of the holder's own file, so that it can touch no other's."""

    def __str__(self) -> str:
        return str(self._path)

    @contextlib.contextmanager
    def alone(self, patience: float = math.inf) -> Iterator[None]:
        # Not the folder itself: on NFS what is locked for all machines is a file open for writing.
        descriptor = os.open(self._gate, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
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
            # Opened, because network file systems remember what `stat` said.
            with open_regular(self._path) as file:
                return os.fstat(file.fileno()).st_mtime_ns
        except FileNotFoundError:
            return None

    def beat(self) -> None:
        os.utime(self._own)


class Numbered:
    """`lock/000001.json` and so on, of which the last is the lock.

    Only who created an object puts it again: with each beat, and as released. The last one stays,
    so that no number is ever used twice.
    """

    def __init__(self, folder: BucketPath):
        self._folder = folder / "lock"
        self._holder: Holder = {}
        self._number = 0
        """The holder's own."""
        self._read_number = 0
        """The number last read."""

    def __str__(self) -> str:
        return str(self._folder)

    def alone(self, patience: float = math.inf) -> AbstractContextManager[None]:
        return contextlib.nullcontext()

    def take(self, holder: Holder, instead_of: Holder | None) -> bool:
        number = self._read_number + 1
        if self._last() >= number or not self._is_created(number, holder):
            return False
        if self._last() > number:  # Of one so slow that others came and went meanwhile.
            return False
        self._number, self._holder = number, holder
        with contextlib.suppress(OSError):  # They are in nobody's way.
            for path in self._folder.glob("*.json"):
                if path.name < self._path(number).name:
                    path.unlink()
        return True

    def _is_created(self, number: int, holder: Holder) -> bool:
        path = self._path(number)
        if path.create(_encoded(holder)):
            return True
        try:  # A put whose answer got lost was made again, and has met its own object.
            return _parsed(path.read_bytes()) == holder
        except FileNotFoundError:
            return False

    def read(self) -> Holder | None:
        number = self._last()  # The heartbeat's thread reads too.
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

    def beat(self) -> None:
        self._holder = self._holder | {"beats": self._holder.get("beats", 0) + 1}
        self._path(self._number).write_bytes(_encoded(self._holder))

    def _path(self, number: int) -> BucketPath:
        return self._folder / f"{number:06}.json"

    def _last(self) -> int:
        """0 if there is none."""
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
    """Does nothing on file systems that lack it."""
    end = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:  # The latter on CIFS.
            if time.monotonic() >= end:
                raise BlockingIOError from error
            time.sleep(0.01)
        except OSError:
            return
        else:
            return
