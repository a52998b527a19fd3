"""Files that are on disk, or in a bucket, when they are said to be, and are what was written.

The one place that knows how to write to either. No JAX.
"""

import errno
import functools
import json
import math
import os
import re
import tempfile
import uuid
from pathlib import Path
from typing import Any, NamedTuple

from pydantic_core import from_json

from resnet_flax.errors import UserError, complain
from resnet_flax.storage.bucket import NEEDS, BucketPath
from resnet_flax.storage.regular import open_regular, read_regular, too_large

# How file systems say that they do not sync folders: vboxsf, DrvFs, CIFS, some in user space.
_NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF, errno.EPERM}
AnyPath = Path | BucketPath


def path(name: str | os.PathLike[str]) -> AnyPath:
    """A local path, made absolute, or a name in a bucket.

    Raises UserError for another URL, and for a name that no line of text can hold.
    """
    text = os.fspath(name)
    is_local = not re.match(r"\w[\w+.\-]*:/", text)
    if is_local:
        text = str(Path(text).expanduser().absolute())
    if unprintable := re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", text):
        raise UserError(
            f"Expected a folder named by letters, digits, marks and spaces, got {text!r}: rename"
            f" it without {unprintable[0]!r}."
        )
    if is_local:
        return Path(text)
    if not re.match(rf"({'|'.join(NEEDS)})://[^/]", text):
        accepted = ", ".join(f"{scheme}://BUCKET/NAME" for scheme in NEEDS)
        raise UserError(f"Expected a folder, or one of {accepted}, got {text}.")
    return BucketPath(text)


def refuse_links(folder: AnyPath, *names: str) -> None:
    """Raises UserError if one of these is a symbolic link; the folder itself may be one."""
    for path in (folder / name for name in names):
        if isinstance(path, Path) and path.is_symlink():
            raise UserError(
                f"{path} is a symbolic link to {path.readlink()}. Put there what it leads to; to"
                f" keep the files on another disk, make {folder} the link."
            )


def check_reachable(folder: AnyPath) -> None:
    """Raises UserError if it is in a bucket that cannot be used now: before long work, for it."""
    if isinstance(folder, BucketPath):
        try:
            folder.exists()
        except OSError as error:
            raise UserError(f"Cannot use {folder}: {error.strerror}.") from error


def sync(path: Path) -> None:
    """Returns when a file or a folder's list of names is on disk, as far as that can be had."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC or not path.is_dir():
            raise
        _complain_of_folders(error.strerror)
    finally:
        os.close(descriptor)


@functools.cache
def _complain_of_folders(reason: str) -> None:
    """Once a process."""
    complain(
        f"This file system cannot sync a folder ({reason}): after a power cut, what was written"
        " last may be missing. All else goes on."
    )


def exists(path: AnyPath) -> bool:
    """Raises UserError if it cannot be told."""
    try:
        return path.exists()
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from error


def read_bytes(path: AnyPath, largest: int) -> bytes:
    """What stands in a file, whosoever's folder it is in: every file of a folder is read here.

    Raises OSError, in words, if it is no regular file or has more than `largest` bytes.
    """
    if not isinstance(path, BucketPath):
        return read_regular(path, largest)
    if path.size() > largest:
        raise too_large(path, largest)
    return path.read_bytes()


def write_bytes(path: AnyPath, data: bytes) -> None:
    """Replaces a file at once: a reader, or a crash, sees the old or the new one, never a part."""
    if isinstance(path, BucketPath):
        path.write_bytes(data)
        return
    # In two containers, processes may have the same number.
    new = path.with_name(f".{path.name}.{uuid.uuid4().hex}.new")
    with new.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    sync(path.parent)


def write_text(path: AnyPath, text: str) -> None:
    """Replaces a file at once."""
    write_bytes(path, text.encode())


def write_text_anyway(path: AnyPath, text: str) -> None:
    """Replaces a file at once, or in place, where a full disk has no room for a new one."""
    try:
        write_text(path, text)
    except OSError:
        if isinstance(path, BucketPath):
            raise
        with path.open("r+") as file:
            file.write(text)
            file.truncate()


class Lines:
    """A file to which its one writer appends lines."""

    def __init__(self, path: AnyPath):
        self._path = path
        self._text: str | None = None
        """Of an object, which cannot grow: what is put again with every line."""

    def append(self, line: str) -> None:
        """Written when this returns."""
        if isinstance(self._path, BucketPath):
            if self._text is None:
                self._text = self._path.read_text() if self._path.exists() else ""
            self.replace(f"{self._text}{line}\n")
            return
        with self._path.open("a", encoding="utf-8") as file:
            file.write(f"{line}\n")
            file.flush()
            os.fsync(file.fileno())

    def replace(self, text: str) -> None:
        """Replaces all lines at once."""
        write_text(self._path, text)
        if isinstance(self._path, BucketPath):
            self._text = text


class LocalFolder:
    """A folder for a library that writes files by itself, to a disk.

    Of one in a bucket it is a temporary copy, whose files are put by `publish`.
    """

    def __init__(self, folder: AnyPath):
        """Makes the folder if need be."""
        self._bucket = folder if isinstance(folder, BucketPath) else None
        if isinstance(folder, BucketPath):
            self._temporary = tempfile.TemporaryDirectory(prefix="resnet_flax-")
            self.path = Path(self._temporary.name)
        else:
            folder.mkdir(exist_ok=True)
            self.path = folder

    def publish(self) -> None:
        if self._bucket is not None:
            for file in self.path.iterdir():
                (self._bucket / file.name).upload(file)

    def close(self) -> None:
        """Publishes what there is, and deletes the copy."""
        if self._bucket is not None:
            with self._temporary:
                self.publish()


class ReadPosition(NamedTuple):
    """How far a file has been read that grows by lines, or is replaced."""

    file: int | str = 0
    offset: int = 0


def read_on(path: AnyPath, position: ReadPosition, largest: int) -> tuple[bytes, ReadPosition]:
    """The whole lines after a position, and the position after them.

    If the file was replaced since, all of it is read again: then it has another `file`, or is
    shorter than the offset. At most `largest` bytes are read at once.
    """
    if isinstance(path, BucketPath):
        # Every line makes another object: read again in full, but only then.
        version = path.version()
        text = b"" if version == position.file else read_bytes(path, largest)
        whole = text[: text.rfind(b"\n") + 1]
        return whole, position if version == position.file else ReadPosition(version, len(whole))
    with open_regular(path) as file:
        found = os.fstat(file.fileno())
        if found.st_ino != position.file or found.st_size < position.offset:
            position = ReadPosition(found.st_ino)
        file.seek(position.offset)
        text = file.read(largest)
    whole = text[: text.rfind(b"\n") + 1]
    return whole, ReadPosition(position.file, position.offset + len(whole))


def identity(path: AnyPath) -> tuple[int | str, ...]:
    """Another one whenever the file is. Raises FileNotFoundError if there is none."""
    if isinstance(path, BucketPath):
        return (path.version(),)
    found = path.stat()
    return found.st_ino, found.st_mtime_ns, found.st_size


def write_json(path: AnyPath, value: Any) -> None:
    """Replaces a file at once."""
    write_text(path, pretty_json(value))


def read_json(path: AnyPath, largest: int) -> Any:
    """Raises UserError if the file is absent, larger than that many bytes or not JSON."""
    try:
        # Not json.loads, which takes half characters, and lets numbers and nesting end it.
        return from_json(read_bytes(path, largest))
    except FileNotFoundError as error:
        raise UserError(f"Expected a file {path}: is {path.parent} a run's folder?") from error
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from error
    except ValueError as error:
        raise UserError(f"Expected JSON in {path}, got: {error}.") from error


def pretty_json(value: Any) -> str:
    """With null for a number that is not finite."""
    return json.dumps(finite(value), indent=2, allow_nan=False) + "\n"


def finite(value: Any) -> Any:
    """JSON with null for each number that is not finite."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return value
