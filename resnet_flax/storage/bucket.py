"""Paths in a bucket (s3://..., gs://...), with the part of pathlib that records need. No JAX.

An object is written whole, so a reader sees the old one or the new one. Objects cannot be renamed
or appended to. A folder exists while there is an object below it. Every failure is an OSError whose
`strerror` explains it in one line.
"""

import contextlib
import errno
import fnmatch
import functools
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

NEEDS = {"s3": "s3fs", "gs": "gcsfs"}
INSTALL = "pip install -e '.[bucket]' -c requirements.lock"
# A request without an answer is repeated. It becomes an error within a minute.
_RETRIES = {"mode": "standard", "total_max_attempts": 2}
_ANSWER = {"connect_timeout": 5, "read_timeout": 10, "retries": _RETRIES}
_OPTIONS: dict[str, dict[str, Any]] = {
    "s3": {"config_kwargs": _ANSWER},
    "gs": {"requests_timeout": 30},
}


class BucketPath(PurePosixPath):
    """A path `scheme://bucket/name`. Each method asks the storage; nothing is cached."""

    def __str__(self) -> str:
        scheme, *names = self.parts  # "s3:", "bucket", ...
        return f"{scheme}//{'/'.join(names)}"

    @property
    def _storage(self) -> Any:
        return _storage(self.parts[0].removesuffix(":"))

    @property
    def _key(self) -> str:
        return "/".join(self.parts[1:])

    def exists(self) -> bool:
        try:
            with _explained(self):
                self._storage.info(self._key)
        except FileNotFoundError:
            return False
        return True

    def is_dir(self) -> bool:
        return next(self.iterdir(), None) is not None

    def mkdir(self, *, parents: bool = False, exist_ok: bool = False) -> None:
        """Does nothing: an object needs no folder."""

    def iterdir(self) -> Iterator["BucketPath"]:
        try:
            with _explained(self):
                keys = self._storage.ls(self._key, detail=False)
        except FileNotFoundError:
            return
        for key in keys:
            if key.rstrip("/") != self._key:
                yield self / PurePosixPath(key).name

    def glob(self, pattern: str) -> Iterator["BucketPath"]:
        """The paths directly below this one whose name matches the pattern."""
        return (path for path in self.iterdir() if fnmatch.fnmatchcase(path.name, pattern))

    def objects(self) -> list[str]:
        """The names of all objects below, relative to this path, without `..` and the like."""
        with _explained(self):
            keys = self._storage.find(self._key)
        names = (key.removeprefix(f"{self._key}/") for key in keys if key != self._key)
        return sorted(name for name in names if not {"", ".", ".."} & set(name.split("/")))

    def version(self) -> str:
        """A text that changes whenever the object changes."""
        with _explained(self):
            return self._storage.ukey(self._key)

    def size(self) -> int:
        """The object's size in bytes."""
        with _explained(self):
            return self._storage.info(self._key)["size"]

    def read_bytes(self) -> bytes:
        with _explained(self):
            return self._storage.cat_file(self._key)

    def read_text(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return self.read_bytes().decode(encoding, errors)

    def write_bytes(self, data: bytes) -> None:
        with _explained(self, puts=True):
            self._storage.pipe_file(self._key, data)

    def create(self, data: bytes) -> bool:
        """Creates an object. False if it exists already. If many processes try, one succeeds."""
        try:
            with _explained(self, puts=True):
                self._storage.pipe_file(self._key, data, mode="create")
        except FileExistsError:
            return False
        return True

    def unlink(self) -> None:
        """Deletes the object. It is no error if there is none."""
        with contextlib.suppress(FileNotFoundError), _explained(self):
            self._storage.rm_file(self._key)

    def upload(self, file: Path) -> None:
        """Writes a local file's content to the object."""
        with _explained(self, puts=True):
            self._storage.put_file(str(file), self._key)

    def download(self, file: Path) -> None:
        """Copies the object to a local file, and makes that file's folder."""
        file.parent.mkdir(parents=True, exist_ok=True)
        with _explained(self):
            self._storage.get_file(self._key, str(file))

    def copy_to(self, target: "BucketPath") -> None:
        """Copies the object to another name in the same bucket."""
        with _explained(self):
            self._storage.cp_file(self._key, target._key)


@functools.cache
def _storage(scheme: str) -> Any:
    import fsspec  # Slow to import, and not needed for folders on a disk.

    # Other processes also write, so listings are not cached.
    storage = fsspec.filesystem(scheme, use_listings_cache=False, **_OPTIONS[scheme])
    storage.retries = 2  # Of s3fs; in each of them its client tries twice.
    return storage


@contextlib.contextmanager
def _explained(path: BucketPath, *, puts: bool = False) -> Iterator[None]:
    """Turns any error of the libraries below into an OSError with an explanation.

    `puts`: whether an object is written. Then "not found" means that the bucket does not exist.
    """
    try:
        yield
    except FileExistsError:
        raise
    except FileNotFoundError as error:
        if puts or re.search("NoSuchBucket|HeadBucket", str(error.__cause__)):
            raise OSError(errno.ENXIO, "the bucket does not exist", str(path)) from error
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from error
    except ImportError as error:
        scheme = path.parts[0].removesuffix(":")
        reason = f"{NEEDS[scheme]} is not installed; install it with: {INSTALL}"
        raise OSError(errno.ENOPKG, reason, str(path)) from error
    except PermissionError as error:
        raise OSError(errno.EACCES, f"access refused ({_line(error)})", str(path)) from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno and error.strerror:
            raise
        raise OSError(errno.EIO, _line(error), str(path)) from error


def _line(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return (text.splitlines() or [type(error).__name__])[0].rstrip(".")
