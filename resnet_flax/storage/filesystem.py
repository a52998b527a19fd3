"""Reading and writing of files on a disk or in a bucket. No JAX.

A written file appears at once and whole, and it is on disk when the function returns. Only this
file knows how to write to both places.
"""

import contextlib
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

# Errors of file systems that cannot sync folders: vboxsf, DrvFs, CIFS and some in user space.
_NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF, errno.EPERM}
AnyPath = Path | BucketPath


def path(name: str | os.PathLike[str]) -> AnyPath:
    """Turns a name into a local, absolute path or into a path in a bucket.

    Raises UserError for any other URL, for a name with control characters or line breaks, and for
    the home of a user that there is not.
    """
    text = os.fspath(name)
    is_local = not re.match(r"\w[\w+.\-]*:/", text)
    if is_local:
        try:
            text = str(Path(text).expanduser().absolute())
        except RuntimeError as error:
            raise UserError(
                f"Expected a folder, got {text}: there is no such home. Give its whole path."
            ) from error
    if unprintable := re.search(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", text):
        raise UserError(
            f"Expected a folder named by printable characters, got {text!r}. Rename it without"
            f" {unprintable[0]!r}."
        )
    if is_local:
        return Path(text)
    if not re.match(rf"({'|'.join(NEEDS)})://[^/]", text):
        accepted = ", ".join(f"{scheme}://BUCKET/NAME" for scheme in NEEDS)
        raise UserError(f"Expected a folder, or one of {accepted}, got {text}.")
    return BucketPath(text)


def refuse_links(folder: AnyPath, *names: str) -> None:
    """Raises UserError if one of these names is a symbolic link. The folder itself may be one."""
    for path in (folder / name for name in names):
        if isinstance(path, Path) and path.is_symlink():
            raise UserError(
                f"{path} is a symbolic link to {path.readlink()}. Replace it by what it points to."
                f" To keep the files on another disk, make {folder} the link."
            )


def check_reachable(folder: AnyPath) -> None:
    """Raises UserError if the folder's bucket cannot be used. To be called before long work."""
    if isinstance(folder, BucketPath):
        try:
            folder.exists()
        except OSError as error:
            raise UserError(f"Cannot use {folder}: {error.strerror}.") from error


def sync(path: Path) -> None:
    """Waits until a file, or a folder's list of names, is on disk.

    Only prints a warning where the file system cannot do it for a folder.
    """
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
    """Prints the warning once in a process."""
    complain(
        f"This file system cannot sync a folder ({reason}). After a power cut, the last files may"
        " be missing. The command goes on."
    )


def exists(path: AnyPath) -> bool:
    """Whether a file or folder exists. Raises UserError if the system cannot tell."""
    try:
        return path.exists()
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from error


def read_bytes(path: AnyPath, largest: int) -> bytes:
    """Reads a whole file safely, also from a folder of somebody else.

    Raises an OSError with an explanation if it is not a regular file or has more than `largest`
    bytes.
    """
    if not isinstance(path, BucketPath):
        return read_regular(path, largest)
    if path.size() > largest:
        raise too_large(path, largest)
    return path.read_bytes()


def write_bytes(path: AnyPath, data: bytes) -> None:
    """Replaces a file at once. A reader, or a crash, sees the old or the new file, never a part.

    An OSError names the file.
    """
    if isinstance(path, BucketPath):
        path.write_bytes(data)
        return
    # A random name: processes in two containers may have the same number.
    new = path.with_name(f".{path.name}.{uuid.uuid4().hex}.new")
    try:
        with new.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except BaseException as error:  # A full disk would keep a part of each attempt.
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)
        raise
    sync(path.parent)


def write_text(path: AnyPath, text: str) -> None:
    """Replaces a text file at once."""
    write_bytes(path, text.encode())


def write_text_anyway(path: AnyPath, text: str) -> None:
    """Replaces a file at once. On a full disk without room for a new file, writes in place."""
    try:
        write_text(path, text)
    except OSError:
        if isinstance(path, BucketPath):
            raise
        with path.open("r+") as file:
            file.write(text)
            file.truncate()


class Lines:
    """A file to which a single writer appends lines."""

    def __init__(self, path: AnyPath):
        self._path = path
        self._text: str | None = None
        """In a bucket, the whole text. An object cannot grow, so each line writes it again."""

    def append(self, line: str) -> None:
        """Appends a line. It is on disk when this returns."""
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
    """A folder on a disk, for a library that writes its own files.

    For a folder in a bucket, it is a temporary folder. `publish` copies its files to the bucket.
    """

    def __init__(self, folder: AnyPath):
        """Makes the folder if it is missing."""
        self._bucket = folder if isinstance(folder, BucketPath) else None
        if isinstance(folder, BucketPath):
            self._temporary = tempfile.TemporaryDirectory(prefix="resnet_flax-")
            self.path = Path(self._temporary.name)
        else:
            folder.mkdir(exist_ok=True)
            self.path = folder

    def publish(self) -> None:
        """Copies all files to the bucket, if the folder is in one."""
        if self._bucket is not None:
            for file in self.path.iterdir():
                (self._bucket / file.name).upload(file)

    def close(self) -> None:
        """Publishes, then deletes the temporary folder, if the folder is in a bucket."""
        if self._bucket is not None:
            with self._temporary:
                self.publish()


class ReadPosition(NamedTuple):
    """How far a growing file was read. `file` tells it from the files that replace it."""

    file: int | str = 0
    offset: int = 0


def read_on(path: AnyPath, position: ReadPosition, largest: int) -> tuple[bytes, ReadPosition]:
    """Reads the whole lines after a position. Returns them and the new position.

    If the file was replaced since then, it is read from its beginning. A file that was replaced
    once has another `file`; after two times it is noticed only if it is shorter than the offset.
    Reads at most `largest` bytes.
    """
    if isinstance(path, BucketPath):
        # Each new line replaces the object: a new version is read in full.
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
    """Values that change whenever the file changes. Raises FileNotFoundError if it is missing."""
    if isinstance(path, BucketPath):
        return (path.version(),)
    found = path.stat()
    return found.st_ino, found.st_mtime_ns, found.st_size


def write_json(path: AnyPath, value: Any) -> None:
    """Replaces a JSON file at once."""
    write_text(path, pretty_json(value))


def read_json(path: AnyPath, largest: int) -> Any:
    """Reads a JSON file.

    Raises UserError if the file is missing, not JSON, or larger than `largest` bytes.
    """
    try:
        # Not json.loads: it accepts lone surrogates, and long numbers or deep nesting crash it.
        return from_json(read_bytes(path, largest))
    except FileNotFoundError as error:
        raise UserError(f"Expected a file {path}: is {path.parent} a run's folder?") from error
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from error
    except ValueError as error:
        raise UserError(f"Expected JSON in {path}, got: {error}.") from error


def pretty_json(value: Any) -> str:
    """JSON text with indents, and null for each number that is not finite."""
    return json.dumps(finite(value), indent=2, allow_nan=False) + "\n"


def finite(value: Any) -> Any:
    """The same JSON value, with None for each number that is not finite."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite(item) for item in value]
    return value
