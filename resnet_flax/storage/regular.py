"""Opens files of folders that may be anybody's: a name there may stand for anything. No JAX."""

import errno
import io
import os
import stat
from pathlib import Path, PurePath


def open_regular(path: Path) -> io.BufferedReader:
    """A file, to read. Raises OSError for a pipe, a device or a folder, without waiting for it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, f"{path.name} is no regular file", str(path))
    return io.BufferedReader(io.FileIO(descriptor))


def read_regular(path: Path, largest: int) -> bytes:
    """What stands in a file. Raises OSError, also if that is more than `largest` bytes."""
    with open_regular(path) as file:
        # Some have no size until they are read, such as those of /proc.
        size = os.fstat(file.fileno()).st_size
        if size > largest or len(content := file.read(largest + 1)) > largest:
            raise too_large(path, largest)
    return content


def too_large(path: PurePath, largest: int) -> OSError:
    """What is raised for a file of more than that many bytes."""
    return OSError(errno.EFBIG, f"{path.name} has more than {largest:,} bytes", str(path))
