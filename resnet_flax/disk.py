"""Files that are on disk when they are said to be, and are what was written. No JAX."""

import hashlib
import os
from pathlib import Path

SUMS = "SHA256SUMS"


def _files(folder: Path) -> list[str]:
    """All files below a folder, sums and hidden files apart."""
    files = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(str(f) for f in files if str(f) != SUMS and not f.name.startswith("."))


def write_sums(folder: Path) -> None:
    """Writes the sums of all files, after all of them are on disk."""
    lines = []
    for name in _files(folder):
        lines.append(f"{_sha256(folder / name)}  {name}\n")
        sync(folder / name)
    path = folder / SUMS
    path.write_text("".join(lines))
    for written in (path, *(p for p in folder.rglob("*") if p.is_dir()), folder):
        sync(written)


def damage(folder: Path) -> str | None:
    """What is wrong with the files of a folder that has sums, None if nothing is."""
    try:
        *lines, rest = (folder / SUMS).read_text().split("\n")
        sums = {name: value for value, name in (line.split("  ", 1) for line in lines)}
        if rest or not sums:
            return f"{SUMS} is not what was saved"
        for name in sorted({*sums, *_files(folder)}):
            if name not in sums:
                return f"{name} is not in {SUMS}"
            if not (folder / name).is_file():
                return f"{name} is missing"
            if _sha256(folder / name) != sums[name]:
                return f"{name} is not what was saved"
    except FileNotFoundError:
        return f"{SUMS} is missing"
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    except ValueError:
        return f"{SUMS} is not what was saved"
    return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Returns when a file or a folder's list of names is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
