"""Saves, verifies and restores training states: the only importer of Orbax."""

import contextlib
import functools
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from flax import serialization
from orbax.checkpoint import v1 as ocp

from resnet_flax import disk
from resnet_flax.errors import GOES_ON, FaultError, UserError, summary
from resnet_flax.models import stacking

KEPT = 2
STEP = "STEP"
T = TypeVar("T")


def host_tree(state: Any) -> dict[str, Any]:
    """A state as it is saved: nested dictionaries of host arrays, block by block."""
    return stacking.unstack(serialization.to_state_dict(jax.device_get(state)))


class Checkpoints:
    """The checkpoints of one run, `folder/<step>/`, each with the SHA-256 sums of its files.

    States are stored as nested dicts of host arrays, so they restore on any number of devices and
    without the code that made them. A step appears at once and whole, sums included; `sha256sum
    --check SHA256SUMS` verifies it by hand.
    """

    def __init__(
        self,
        folder: Path,
        *,
        say: Callable[[str], None] | None = None,
    ):
        """Opens a folder to restore from it; nothing in it is ever changed.

        `say` hears of damage; by default it stands on stderr. Raises UserError if there is no such
        folder.
        """
        if not folder.is_dir():
            raise UserError(f"No checkpoint in {folder}.")
        self.folder, self._say = folder, say or functools.partial(print, file=sys.stderr)

    def steps(self) -> list[int]:
        """The steps there are, ascending."""
        names = [p.name for p in self.folder.iterdir() if p.is_dir() and not p.is_symlink()]
        return sorted(int(name) for name in names if re.fullmatch("0|[1-9][0-9]{0,17}", name))

    def last_good(self) -> int | None:
        """The newest step whose files are what was saved, None if there is none."""
        damaged = []
        for step in reversed(self.steps()):
            damage = _damage(self.folder / str(step))
            if damage is None:
                break
            damaged.append(
                f"{self.folder / str(step)} is damaged ({damage}){self._set_aside(step)}"
            )
        else:
            step = None
        for line in damaged:
            self._say(
                f"{line}; " + ("no other is whole." if step is None else f"step {step} is used.")
            )
        return step

    def _set_aside(self, step: int) -> str:
        """What was done with a damaged step: nothing, by one who only reads."""
        return ""

    def restore(self, step: int | None = None) -> dict[str, Any]:
        """The state dict saved at `step`, by default the newest whole one, as host arrays.

        Raises UserError if there is none, naming the steps there are, or if it is damaged.
        """
        path = self.folder / str(step)
        if step is None:
            step = self.last_good()
            if step is None:
                raise UserError(f"No checkpoint in {self.folder}.")
            path = self.folder / str(step)
        elif step not in self.steps():
            raise UserError(
                f"No checkpoint of step {step} in {self.folder}; there are: {self.steps()}."
            )
        elif damage := _damage(path):
            raise UserError(f"{path} is damaged ({damage}); steps there are: {self.steps()}.")
        try:
            abstract: Any = ocp.metadata(path).metadata
            return ocp.load(path, jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), abstract))
        except Exception as error:  # Orbax lets through what its many parts raise.
            raise UserError(f"Cannot read the checkpoint {path} ({summary(error)}).") from error

    def restore_into(self, state: T, step: int | None = None) -> T:
        """`state`, whose leaves need a shape and dtype alone, with the values saved at `step`.

        Raises UserError if what was saved has other leaves: it is another model's.
        """
        saved = self.restore(step)
        if stacking.is_stacked(state):
            saved = stacking.stack(saved)
        self.check_same(serialization.to_state_dict(state), saved)
        return serialization.from_state_dict(state, saved)

    def check_same(self, expected: Any, found: Any) -> None:
        """Raises UserError unless two state dicts have leaves of the same names and shapes."""
        expected, found = _leaves(expected), _leaves(found)
        for name in sorted(expected.keys() | found.keys()):
            if expected.get(name) != found.get(name):
                raise UserError(
                    f"The checkpoint in {self.folder} is of another model: expected {name} to be"
                    f" {expected.get(name, 'absent')}, got {found.get(name, 'absent')}."
                )


class CheckpointWriter(Checkpoints):
    """Saves too, in the background: with several processes all call, and the first one writes.

    Kept are the last `KEPT` steps, the one of the least test error, and every `keep_every`-th.
    Use as a context manager, which waits for the last save.
    """

    def __init__(
        self,
        folder: Path,
        *,
        keep_every: int,
        attempt: int,
        check_writer: Callable[[], None],
        say: Callable[[str], None],
    ):
        """Makes the folder if need be, and clears away what a crash left half-written.

        - `keep_every`: 0 keeps none besides.
        - `attempt`: sets what it has half-written apart from what an earlier writer has.
        - `check_writer`: raises if the run has become another process's.
        """
        self._first = jax.process_index() == 0
        if self._first:
            folder.mkdir(exist_ok=True)
            for path in folder.glob(".*.*"):
                shutil.rmtree(path, ignore_errors=True)
        self.folder, self._say = folder, say
        self._keep_every, self._attempt, self._check_writer = keep_every, attempt, check_writer
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._save: Future[None] | None = None
        self.saved: int | None = None
        """The last step saved, whole and on disk."""

    def __enter__(self) -> "CheckpointWriter":
        self._hook, sys.unraisablehook = sys.unraisablehook, self._unraisable
        return self

    def _unraisable(self, unraisable: Any) -> None:
        # When one array cannot be written, Orbax leaves those of the others to no one.
        if str(unraisable.exc_value) != "Event loop is closed":
            self._hook(unraisable)

    def __exit__(self, kind: type[BaseException] | None, *exc_info: object) -> None:
        """Waits for the last save; its error is raised, unless another is on its way."""
        with contextlib.suppress(*([Exception] if kind else [])):
            self.wait()
        self._thread.shutdown()
        sys.unraisablehook = self._hook

    def save(self, step: int, state: Any, test_errors: Mapping[int, float]) -> None:
        """Begins to save; the state may be donated or changed as soon as this returns.

        `state`: or its `host_tree`. `test_errors`: of the steps evaluated so far, to know the best
        one. Raises FaultError if the save before this one failed.
        """
        self.wait()
        tree = host_tree(state)
        part = self.folder / f".{step}.{self._attempt}.part"
        with self._faults(step, part):
            if self._first:
                self._check_writer()  # Orbax would make a folder that has vanished anew.
            # Folders made in the background would leave threads waiting forever where none can be.
            context = ocp.Context()
            context.asynchronous.create_directories_asynchronously = False
            with context:
                response = ocp.save_async(part, tree)
        self._save = self._thread.submit(self._finish, step, part, response, dict(test_errors))

    def wait(self) -> None:
        """Until the last save is whole and on disk. Raises FaultError if it failed."""
        save, self._save = self._save, None
        if save is not None:
            save.result()

    def close(self, test_errors: Mapping[int, float]) -> None:
        """Waits, and keeps what is to be kept by the errors known at the end."""
        self.wait()
        if self._first:
            self._check_writer()
            self._delete_old(test_errors)

    def poll(self) -> None:
        """Raises FaultError if the last save has failed."""
        if self._save is not None and self._save.done():
            self.wait()

    def _finish(
        self, step: int, part: Path, response: Any, test_errors: Mapping[int, float]
    ) -> None:
        with self._faults(step, part):
            response.result()
            if self._first:
                (part / STEP).write_text(f"{step}\n")
                disk.write_sums(part)
                self._check_writer()
                part.rename(self.folder / str(step))
                disk.sync(self.folder)
                self._delete_old(test_errors)
            self.saved = step

    @contextlib.contextmanager
    def _faults(self, step: int, part: Path) -> Iterator[None]:
        """What goes wrong with a save becomes one line, and leaves nothing half-written."""
        try:
            yield
        except Exception as error:
            for path in self.folder.glob(f"{part.name}*") if self._first else ():
                shutil.rmtree(path, ignore_errors=True)
            if isinstance(error, FaultError):
                raise
            raise FaultError(
                f"Cannot save step {step} in {self.folder}: {_reason(error)}. {GOES_ON}"
            ) from error

    def _delete_old(self, test_errors: Mapping[int, float]) -> None:
        steps = self.steps()
        kept = set(steps[-KEPT:])
        kept |= {step for step in steps if self._keep_every and step % self._keep_every == 0}
        kept |= set(sorted(test_errors.keys() & set(steps), key=test_errors.__getitem__)[:1])
        try:
            for step in set(steps) - kept:
                hidden = (self.folder / str(step)).rename(self.folder / f".{step}.old")
                shutil.rmtree(hidden)
        except OSError as error:  # No reason to stop: what is to be kept is there.
            self._say(f"Cannot delete an old checkpoint in {self.folder}: {_reason(error)}.")

    def _set_aside(self, step: int) -> str:
        name = f"{step}.damaged"
        while (self.folder / name).exists():
            name += "-again"
        (self.folder / str(step)).rename(self.folder / name)
        return f", set aside as {name}"

    def has_damaged(self) -> bool:
        """Whether a step was ever set aside."""
        return any(self.folder.glob("*.damaged*"))


def _leaves(tree: Any) -> dict[str, str]:
    """Dotted name -> type and shape of each array of a state dict."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, None if nothing is."""
    damage = disk.damage(folder)
    if damage is None and (step := (folder / STEP).read_text().strip()) != folder.name:
        return f"it was saved as step {step}"
    return damage


def _reason(error: Exception) -> str:
    """The operating system's word for it where there is one."""
    code = re.search(r"os_error_code='(\d+)'", str(error))
    if code:
        return os.strerror(int(code[1]))
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return summary(error)
