"""The folders of a run's checkpoints: one for each step, on a disk or in a bucket.

In both, a step appears at once and whole, with its sums. On a disk, a finished folder is renamed to
the step. In a bucket, files are written one by one, `SHA256SUMS` last: a step exists if it has that
file. Checkpoints in a bucket pass through a temporary folder of this machine.
"""

import contextlib
import hashlib
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from resnet_flax.storage import filesystem, sums
from resnet_flax.storage.bucket import BucketPath
from resnet_flax.storage.filesystem import AnyPath
from resnet_flax.storage.sums import SUMS

Held = Callable[[], contextlib.AbstractContextManager[None]]
"""Makes a context for a write. It raises if this process may no longer write."""
KEPT = 2
STEP, CONFIG = "STEP", "CONFIG_SHA256"
STEP_NAME = "0|[1-9][0-9]{0,17}"
# Names that an unfinished save or deletion may leave, also of earlier versions.
_LEFT = re.compile(rf"\.({STEP_NAME})\.(\w+\.)?(part|old)(\..*)?")


def kept_steps(steps: Sequence[int], keep_every: int, test_errors: Mapping[int, float]) -> set[int]:
    """The steps to keep, out of these ascending ones.

    They are the last `KEPT`, the one with the least test error (the first of equals), and every
    `keep_every`-th step, unless that is 0. Step 0 is kept, too: only a run that began with another
    one's parameters saves it, and that one may change.
    """
    kept = set(steps[-KEPT:]) | ({0} & set(steps))
    kept |= {step for step in steps if keep_every and step % keep_every == 0}
    evaluated = [step for step in steps if step in test_errors]
    return kept | set(sorted(evaluated, key=test_errors.__getitem__)[:1])


def label(part: Path, step: int, config: str | None) -> None:
    """Adds to a step's files its number, the digest of its run's config, and the sums."""
    (part / STEP).write_text(f"{step}\n")
    if config is not None:
        (part / CONFIG).write_text(f"{config}\n")
    sums.write_sums(part)


def damage_of(files: Path) -> str | None:
    """Checks the files of a step. Returns the damage in words, or None.

    Raises OSError if a file cannot be read.
    """
    damage = "it is a symbolic link" if files.is_symlink() else sums.damage(files)
    if damage is None and (step := _word(files / STEP)) != files.name:
        return f"it was saved as step {step}"
    return damage


def config_of(files: Path) -> str | None:
    """The digest of the config under which a step was saved. None if an older version saved it."""
    return _word(files / CONFIG) if (files / CONFIG).exists() else None


def _word(path: Path) -> str:
    return path.read_text(errors="replace").strip()


class StepFolders(Protocol):
    """The steps in a folder."""

    def steps(self) -> list[int]:
        """All steps, ascending, also damaged ones. Empty if the folder is missing."""

    def files(self, step: int) -> contextlib.AbstractContextManager[Path]:
        """A context with a local folder that has the step's name and files."""

    def prepare(self) -> None:
        """Makes the folder if it is missing, and deletes unfinished files that a crash left."""

    def close(self) -> None:
        """Deletes the temporary folder, if `prepare` made one."""

    def part(self, step: int, attempt: int) -> Path:
        """A new local path to write a step to."""

    def publish(self, part: Path, step: int, held: Held) -> None:
        """Turns the files in `part` into the step, inside a `held` context."""

    def discard(self, part: Path) -> None:
        """Deletes the files in `part`, also unfinished ones."""

    def delete(self, step: int) -> None:
        """Deletes a step. It disappears at once."""

    def set_aside(self, step: int) -> str:
        """Renames a damaged step. Returns the new name."""


def step_folders(folder: AnyPath) -> StepFolders:
    return _InBucket(folder) if isinstance(folder, BucketPath) else _OnDisk(folder)


class _OnDisk:
    def __init__(self, folder: Path):
        self._folder = folder

    def steps(self) -> list[int]:
        paths = self._folder.iterdir() if self._folder.is_dir() else ()
        named = [path for path in paths if re.fullmatch(STEP_NAME, path.name)]
        return sorted(int(path.name) for path in named if path.is_symlink() or path.is_dir())

    def files(self, step: int) -> contextlib.AbstractContextManager[Path]:
        return contextlib.nullcontext(self._folder / str(step))

    def prepare(self) -> None:
        self._folder.mkdir(exist_ok=True)
        for path in self._folder.iterdir():
            if _LEFT.fullmatch(path.name):
                with contextlib.suppress(OSError):  # The next start tries again.
                    _delete(path)

    def close(self) -> None:
        pass

    def part(self, step: int, attempt: int) -> Path:
        # The unfinished folder of an earlier attempt has another name.
        return self._folder / f".{step}.{attempt}.part"

    def publish(self, part: Path, step: int, held: Held) -> None:
        with held():
            part.rename(self._folder / str(step))
            filesystem.sync(self._folder)

    def discard(self, part: Path) -> None:
        _delete_all(self._folder, f"{part.name}*")

    def delete(self, step: int) -> None:
        # A new name: an earlier deletion may have left a folder.
        old = self._folder / f".{step}.{uuid.uuid4().hex}.old"
        _delete((self._folder / str(step)).rename(old))

    def set_aside(self, step: int) -> str:
        name = _free_name(self._folder, step)
        (self._folder / str(step)).rename(self._folder / name)
        return name


class _InBucket:
    def __init__(self, folder: BucketPath):
        self._folder = folder
        # Always the same name, so that the user's next writer deletes what a crash left there.
        key = hashlib.sha256(f"{os.getuid()} {folder}".encode()).hexdigest()[:16]
        self._staging = Path(tempfile.gettempdir()) / f"resnet_flax-{key}"

    def steps(self) -> list[int]:
        whole = re.compile(rf"({STEP_NAME})/{SUMS}")
        return sorted(
            int(found[1]) for found in map(whole.fullmatch, self._folder.objects()) if found
        )

    @contextlib.contextmanager
    def files(self, step: int) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="resnet_flax-") as temporary:
            local, remote = Path(temporary) / str(step), self._folder / str(step)
            for name in remote.objects():
                # If a file was deleted after it was listed, the sums will show it.
                with contextlib.suppress(FileNotFoundError):
                    (remote / name).download(local / name)
            yield local

    def prepare(self) -> None:
        steps = set(map(str, self.steps()))
        for name in self._folder.objects():
            step, _, inner = name.partition("/")
            if inner and re.fullmatch(STEP_NAME, step) and step not in steps:
                (self._folder / name).unlink()
        shutil.rmtree(self._staging, ignore_errors=True)
        self._staging.mkdir(mode=0o700)

    def close(self) -> None:
        shutil.rmtree(self._staging, ignore_errors=True)

    def part(self, step: int, attempt: int) -> Path:
        return self._staging / f"{step}.{attempt}.part"

    def publish(self, part: Path, step: int, held: Held) -> None:
        names = [str(path.relative_to(part)) for path in part.rglob("*") if path.is_file()]
        for name in sorted(names, key=lambda name: name == SUMS):
            with held():  # For each file, so that a process without its lock stops soon.
                (self._folder / str(step) / name).upload(part / name)
        self.discard(part)

    def discard(self, part: Path) -> None:
        _delete_all(self._staging, f"{part.name}*")

    def delete(self, step: int) -> None:
        (self._folder / str(step) / SUMS).unlink()
        for name in (self._folder / str(step)).objects():
            (self._folder / str(step) / name).unlink()

    def set_aside(self, step: int) -> str:
        aside = _free_name(self._folder, step)
        for name in (self._folder / str(step)).objects():
            (self._folder / str(step) / name).copy_to(self._folder / aside / name)
        self.delete(step)
        return aside


def _delete_all(folder: Path, pattern: str) -> None:
    for path in folder.glob(pattern):
        shutil.rmtree(path, ignore_errors=True)


def _delete(path: Path) -> None:
    """Deletes a folder or a file. If it is a link, deletes only the link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _free_name(folder: AnyPath, step: int) -> str:
    name = f"{step}.damaged"
    while (folder / name).exists():
        name += "-again"
    return name
