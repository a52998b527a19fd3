"""Files that are on disk when they are said to be, and are what was written. No JAX."""

import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any

from resnet_flax.errors import UserError

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


def write_text(path: Path, text: str) -> None:
    """Replaces a file at once: a reader, or a crash, sees the old or the new one, never a part."""
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    with new.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    sync(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Replaces a file at once."""
    write_text(path, pretty_json(value))


def read_json(path: Path) -> Any:
    """Raises UserError if the file is absent or is not JSON."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UserError(f"Expected a file {path}: is {path.parent} a run's folder?") from error
    except (OSError, ValueError, RecursionError) as error:
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
