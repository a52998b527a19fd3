"""SHA-256 sums of a folder's files: written after the files, checked before the files are used."""

import errno
import hashlib
from pathlib import Path

from resnet_flax.storage.filesystem import read_bytes, sync
from resnet_flax.storage.regular import open_regular

SUMS = "SHA256SUMS"
LEFT_BY_WINDOWS = ("thumbs.db", "desktop.ini")
# What a path that is not a file gives. Any other error says nothing about the content.
_NO_FILE = {errno.EINVAL, errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EFBIG}


def _files(folder: Path) -> list[str]:
    """The names of all files below a folder, without the sums and without files of the system.

    Those are hidden files (macOS: .DS_Store, ._NAME; NFS: .nfsNUMBER), all files in hidden folders
    (.AppleDouble, .@__thumb) and LEFT_BY_WINDOWS.
    """
    files = (path.relative_to(folder) for path in folder.rglob("*") if not path.is_dir())
    return sorted(
        str(file)
        for file in files
        if str(file) != SUMS
        and not any(part.startswith(".") for part in file.parts)
        and file.name.lower() not in LEFT_BY_WINDOWS
    )


def write_sums(folder: Path) -> None:
    """Writes the sums of all files, after syncing the files to disk."""
    lines = []
    for name in _files(folder):
        lines.append(f"{_sha256(folder / name)}  {name}\n")
        sync(folder / name)
    path = folder / SUMS
    path.write_text("".join(lines))
    for written in (path, *(p for p in folder.rglob("*") if p.is_dir()), folder):
        sync(written)


def damage(folder: Path) -> str | None:
    """Compares the files of a folder with its sums. Returns the damage in words, or None.

    Raises OSError if a file cannot be read: its server may be away, or it is another user's.
    """
    name = SUMS
    try:
        *lines, rest = read_bytes(folder / SUMS, 2**24).decode().split("\n")
        sums = {name: value for value, name in (line.split("  ", 1) for line in lines)}
        if rest or not sums:
            return f"{SUMS} is not what was saved"
        for name in sorted({*sums, *_files(folder)}):
            if name not in sums:
                return f"{name} is not in {SUMS}"
            if _sha256(folder / name) != sums[name]:
                return f"{name} is not what was saved"
    except FileNotFoundError:
        return f"{name} is missing"
    except OSError as error:
        if error.errno not in _NO_FILE:
            raise
        return f"{name}: {error.strerror}"
    except ValueError:
        return f"{SUMS} is not what was saved"
    return None


def _sha256(path: Path) -> str:
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
