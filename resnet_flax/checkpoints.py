"""Saves, verifies and restores training states: the only importer of Orbax."""

import contextlib
import os
import re
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
from resnet_flax.disk import AnyPath
from resnet_flax.errors import GOES_ON, FaultError, UserError, complain, summary
from resnet_flax.models import stacking
from resnet_flax.step_folders import Held, step_folders

KEPT = 2
STEP = "STEP"
COMMITTED = "commit_success.txt"  # In it Orbax names the folder, which is nobody else's business.
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
        folder: AnyPath,
        *,
        say: Callable[[str], None] | None = None,
    ):
        """Opens a folder to restore from it; nothing in it is ever changed.

        `say` hears of damage; by default it stands on stderr. Raises UserError if there is no such
        folder.
        """
        self.folder, self._say = folder, say or complain
        self._folders = step_folders(folder)
        with self._readable():
            if not self._folders.exists():
                raise UserError(f"No checkpoint in {folder}.")

    @contextlib.contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(f"Cannot read {self.folder}: {_reason(error)}.") from error

    def steps(self) -> list[int]:
        """The steps there are, ascending."""
        return self._folders.steps()

    def last_good(self) -> int | None:
        """The newest step whose files are what was saved, None if there is none."""
        with self._newest_whole() as (step, _):
            return step

    @contextlib.contextmanager
    def _newest_whole(self) -> Iterator[tuple[int | None, Path]]:
        """That step and its files."""
        damaged = []
        with contextlib.ExitStack() as stack:
            for step in reversed(self.steps()):
                files = stack.enter_context(self._folders.files(step))
                damage = _damage(files)
                if damage is None:
                    break
                stack.close()
                damaged.append(
                    f"{self.folder / str(step)} is damaged ({damage}){self._set_aside(step)}"
                )
            else:
                step, files = None, Path()
            for line in damaged:
                used = "no other is whole." if step is None else f"step {step} is used."
                self._say(f"{line}; {used}")
            yield step, files

    def _set_aside(self, step: int) -> str:
        """What was done with a damaged step: nothing, by one who only reads."""
        return ""

    def restore(self, step: int | None = None) -> dict[str, Any]:
        """The state dict saved at `step`, by default the newest whole one, as host arrays.

        Raises UserError if there is none, naming the steps there are, or if it is damaged.
        """
        with self._readable(), self._whole(step) as (step, files):
            try:
                abstract: Any = ocp.metadata(files).metadata
                return ocp.load(files, jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), abstract))
            except Exception as error:  # Orbax lets through what its many parts raise.
                path = self.folder / str(step)
                raise UserError(f"Cannot read the checkpoint {path} ({summary(error)}).") from error

    @contextlib.contextmanager
    def _whole(self, step: int | None) -> Iterator[tuple[int, Path]]:
        """A step that is whole, by default the newest, and its files. Raises UserError if not."""
        if step is None:
            with self._newest_whole() as (step, files):
                if step is None:
                    raise UserError(f"No checkpoint in {self.folder}.")
                yield step, files
                return
        if step not in self.steps():
            raise UserError(
                f"No checkpoint of step {step} in {self.folder}; there are: {self.steps()}."
            )
        with self._folders.files(step) as files:
            if damage := _damage(files):
                raise UserError(
                    f"{self.folder / str(step)} is damaged ({damage}); steps there are:"
                    f" {self.steps()}."
                )
            yield step, files

    def restore_into(self, state: T, step: int | None = None) -> T:
        """`state`, whose leaves need a shape and dtype alone, with the values saved at `step`.

        Raises UserError if what was saved has other leaves: it is another model's.
        """
        saved = self.restore(step)
        expected = serialization.to_state_dict(state)
        if saved.keys() < expected.keys():
            missing = ", ".join(sorted(expected.keys() - saved.keys()))
            raise UserError(
                f"The checkpoint in {self.folder} lacks {missing}, as an exported run's does: no"
                " training can go on from it, but with --config.init_from a new one can begin."
            )
        if stacking.is_stacked(state):
            saved = stacking.stack(saved)
        self.check_same(expected, saved)
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
        folder: AnyPath,
        *,
        keep_every: int,
        attempt: int,
        held: Held,
        say: Callable[[str], None],
    ):
        """Makes the folder if need be, and clears away what a crash left half-written.

        - `keep_every`: 0 keeps none besides.
        - `attempt`: sets what it has half-written apart from what an earlier writer has.
        - `held`: a context to write in, which raises if the run has become another process's.
        """
        self.folder, self._say = folder, say
        self._folders = step_folders(folder)
        self._first = jax.process_index() == 0
        if self._first:
            with held():
                self._folders.prepare()
        self._keep_every, self._attempt, self._held = keep_every, attempt, held
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
        try:
            with contextlib.suppress(*([Exception] if kind else [])):
                self.wait()
        finally:
            self._thread.shutdown()
            if self._first:
                self._folders.close()
            sys.unraisablehook = self._hook

    def save(self, step: int, state: Any, test_errors: Mapping[int, float]) -> None:
        """Begins to save; the state may be donated or changed as soon as this returns.

        `state`: or its `host_tree`. `test_errors`: of the steps evaluated so far, to know the best
        one. Raises FaultError if the save before this one failed.
        """
        self.wait()
        tree = host_tree(state)
        part = self._folders.part(step, self._attempt)
        # Folders made in the background would leave threads waiting forever where none can be.
        context = ocp.Context()
        context.asynchronous.create_directories_asynchronously = False
        with self._faults(step, part), contextlib.ExitStack() as stack:
            if self._first:
                stack.enter_context(self._held())  # Orbax would make a vanished folder anew.
            stack.enter_context(context)
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
                if (part / COMMITTED).exists():
                    (part / COMMITTED).write_text("Checkpoint commit was successful\n")
                disk.write_sums(part)
                self._folders.publish(part, step, self._held)
                self._delete_old(test_errors)
            self.saved = step

    @contextlib.contextmanager
    def _faults(self, step: int, part: Path) -> Iterator[None]:
        """What goes wrong with a save becomes one line, and leaves nothing half-written."""
        try:
            yield
        except Exception as error:
            if self._first:
                self._folders.discard(part)
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
                with self._held():  # Another's steps are not this one's to judge.
                    self._folders.delete(step)
        except OSError as error:  # No reason to stop: what is to be kept is there.
            self._say(f"Cannot delete an old checkpoint in {self.folder}: {_reason(error)}.")

    def _set_aside(self, step: int) -> str:
        with self._held():
            return f", set aside as {self._folders.set_aside(step)}"

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
