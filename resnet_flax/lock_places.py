"""Where a folder's lock is kept.

On a disk it is `lock.json`, deleted when it is given back. In a bucket, where nothing is deleted or
renamed on a condition, it is the last of `lock/000001.json`, `lock/000002.json`, ...: a process
creates the next number once the last holder has given it back or is dead.

What is certain in a bucket: storage that creates an object only where there is none, and lists at
once what was created (S3 and GCS do both), gives each number to one process. From the moment that
there is a later number, `check` raises, which every write has to pass.

What is not: a holder that was frozen between `check` and the put after it, and has lost its lock
since, puts that one object when it wakes. It may replace a record's file by an older one, until its
writer puts it again with the next record or state; or a file of a checkpoint, which then does not
match its sums and is set aside, and the one before is used.
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from resnet_flax.bucket import BucketPath
from resnet_flax.errors import UserError

Holder = dict[str, Any]


class Place(Protocol):
    """Where a lock is kept."""

    def create(self, holder: Holder) -> bool:
        """Makes the lock this holder's; false if there is another."""

    def read(self) -> Holder | None:
        """The holder, None if there is none; of what a crash cut off, what it says: {}."""

    def end(self, holder: Holder | None) -> None:
        """Makes room where that holder was read, or its own: of no other's lock."""

    def sign(self) -> Any:
        """Another one after each `beat` of the holder; None if there is none."""

    def beat(self) -> None:
        """Of the holder alone."""


def place_in(folder: Path | BucketPath) -> Place:
    return Numbered(folder) if isinstance(folder, BucketPath) else File(folder)


class File:
    """`lock.json`."""

    def __init__(self, folder: Path):
        self._path = folder / "lock.json"

    def __str__(self) -> str:
        return str(self._path)

    def create(self, holder: Holder) -> bool:
        with _alone(self._path.parent):
            try:
                file = self._path.open("x")
            except FileExistsError:
                if self._path.is_symlink() and not self._path.exists():
                    raise UserError(f"{self._path} is a link to nothing. Delete it.") from None
                return False
            try:
                with file:
                    json.dump(holder, file)
            except OSError:
                self._path.unlink()
                raise
        return True

    def read(self) -> Holder | None:
        try:
            return _parsed(self._path.read_bytes())
        except FileNotFoundError:
            return None

    def end(self, holder: Holder | None) -> None:
        with _alone(self._path.parent):
            if holder is not None and self.read() == holder:
                self._path.unlink()

    def sign(self) -> int | None:
        try:
            # Opened, because network file systems remember what `stat` said.
            with self._path.open() as file:
                return os.fstat(file.fileno()).st_mtime_ns
        except FileNotFoundError:
            return None

    def beat(self) -> None:
        os.utime(self._path)


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
        self._read_number = self._ended = 0
        """The number last read, and the last one that is nobody's any more."""

    def __str__(self) -> str:
        return str(self._folder)

    def create(self, holder: Holder) -> bool:
        number = self._ended + 1
        if self._last() > self._ended or not self._is_created(number, holder):
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

    def end(self, holder: Holder | None) -> None:
        if not self._number:
            self._ended = self._read_number
        elif self._last() == self._number:
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
