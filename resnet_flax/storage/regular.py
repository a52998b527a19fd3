"""Opens files safely, also in folders of other users, where a name may be a pipe. No JAX."""

import errno
import io
import os
import stat
from pathlib import Path, PurePath


def open_regular(path: Path) -> io.BufferedReader:
    """Opens a file to read. Raises OSError for a pipe, device or folder, and never waits for it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, f"{path.name} is not a regular file", str(path))
    return io.BufferedReader(io.FileIO(descriptor))


def read_regular(path: Path, largest: int) -> bytes:
    """Reads a whole file. Raises OSError, also if it has more than `largest` bytes."""
    with open_regular(path) as file:
        # Files in /proc have size 0 until they are read.
        size = os.fstat(file.fileno()).st_size
        if size > largest or len(content := file.read(largest + 1)) > largest:
            raise too_large(path, largest)
    return content


def too_large(path: PurePath, largest: int) -> OSError:
    """The error for a file of more than `largest` bytes."""
    return OSError(errno.EFBIG, f"{path.name} has more than {largest:,} bytes", str(path))
