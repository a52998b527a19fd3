"""Names in a bucket, s3://... or gs://..., with as much of pathlib as records need. No JAX.

An object is put whole, so a reader sees the old one or the new one. Nothing can be renamed or
appended to, and a folder is there as long as there is an object below it. Whatever goes wrong is an
OSError whose `strerror` says so in one line.
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
# What does not answer is tried again, and is an error within a minute.
_RETRIES = {"mode": "standard", "total_max_attempts": 2}
_ANSWER = {"connect_timeout": 5, "read_timeout": 10, "retries": _RETRIES}
_OPTIONS: dict[str, dict[str, Any]] = {
    "s3": {"config_kwargs": _ANSWER},
    "gs": {"requests_timeout": 30},
}


class BucketPath(PurePosixPath):
    """`scheme://bucket/name`. Each method asks the storage; nothing is remembered."""

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
        """Does nothing: what is put makes its folders."""

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
        """Of what is directly below."""
        return (path for path in self.iterdir() if fnmatch.fnmatchcase(path.name, pattern))

    def objects(self) -> list[str]:
        """The names of all objects below, relative to this one; none that could lead elsewhere."""
        with _explained(self):
            keys = self._storage.find(self._key)
        names = (key.removeprefix(f"{self._key}/") for key in keys if key != self._key)
        return sorted(name for name in names if not {"", ".", ".."} & set(name.split("/")))

    def version(self) -> str:
        """Another one whenever the object is."""
        with _explained(self):
            return self._storage.ukey(self._key)

    def size(self) -> int:
        """In bytes."""
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
        """Puts an object where there is none; false if there is one. Of many, one succeeds."""
        try:
            with _explained(self, puts=True):
                self._storage.pipe_file(self._key, data, mode="create")
        except FileExistsError:
            return False
        return True

    def unlink(self) -> None:
        """Deletes the object; an absent one is no error."""
        with contextlib.suppress(FileNotFoundError), _explained(self):
            self._storage.rm_file(self._key)

    def upload(self, file: Path) -> None:
        """Puts a local file."""
        with _explained(self, puts=True):
            self._storage.put_file(str(file), self._key)

    def download(self, file: Path) -> None:
        """Gets the object as a local file, with its folder."""
        file.parent.mkdir(parents=True, exist_ok=True)
        with _explained(self):
            self._storage.get_file(self._key, str(file))

    def copy_to(self, target: "BucketPath") -> None:
        """To another name in the same bucket."""
        with _explained(self):
            self._storage.cp_file(self._key, target._key)


@functools.cache
def _storage(scheme: str) -> Any:
    import fsspec  # Takes a while, and a folder on a disk needs none.

    # Other processes write, too: no listing is kept.
    storage = fsspec.filesystem(scheme, use_listings_cache=False, **_OPTIONS[scheme])
    storage.retries = 2  # Of s3fs, each of which is two of its client.
    return storage


@contextlib.contextmanager
def _explained(path: BucketPath, *, puts: bool = False) -> Iterator[None]:
    """Whatever the libraries below raise, as an OSError in words.

    `puts`: whether what is not found is not the object.
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
