"""Saves, verifies and restores training states."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import jax
from flax import serialization

from resnet_flax.errors import GOES_ON, FaultError, UserError, complain, summary
from resnet_flax.storage import trees
from resnet_flax.storage.filesystem import AnyPath
from resnet_flax.storage.step_folders import (
    Held,
    config_of,
    damage_of,
    kept_steps,
    label,
    step_folders,
)

T = TypeVar("T")


class Checkpoints:
    """The checkpoints of one run: a folder `<step>/` for each, with the SHA-256 sums of its files.

    A step appears at once and whole, with its sums. `sha256sum --check SHA256SUMS` checks it by
    hand. A step also holds the `RunFolder.config_digest` of its run, unless an older version saved
    it. States are stored as nested dicts of host arrays. So they restore on any number of devices,
    and without the code that made them.
    """

    def __init__(
        self,
        folder: AnyPath,
        *,
        config: str | None = None,
        say: Callable[[str], None] | None = None,
        set_aside: Callable[[int], str] | None = None,
    ):
        """Opens a folder to restore from it.

        - `config`: the digest of the run's config. If it is given, steps of other runs are refused.
        - `say`: called with a line about damage; by default the line is printed on stderr.
        - `set_aside`: renames a damaged step and returns the new name. By default no step is
          renamed.
        """
        self.folder, self._config, self._say = folder, config, say or complain
        self._folders, self._set_aside = step_folders(folder), set_aside

    @contextlib.contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            named = error.filename or self.folder
            raise UserError(f"Cannot read {named}: {trees.reason(error)}.") from error

    def steps(self) -> list[int]:
        """The saved steps, ascending. Raises UserError if the folder cannot be read."""
        with self._readable():
            return self._folders.steps()

    def last_good(self) -> int | None:
        """The newest undamaged step, or None.

        Raises UserError if another run saved it, or if a step cannot be read.
        """
        with self._newest_whole() as (step, _):
            return step

    @contextlib.contextmanager
    def _newest_whole(self) -> Iterator[tuple[int | None, Path]]:
        """Yields the newest undamaged step, or None, and the folder of its files."""
        damaged = []
        with contextlib.ExitStack() as stack:
            for step in reversed(self.steps()):
                with self._readable():
                    files = stack.enter_context(self._folders.files(step))
                    damage = damage_of(files)
                if damage is None:
                    break
                stack.close()
                aside = f", set aside as {self._set_aside(step)}" if self._set_aside else ""
                damaged.append(f"{self.folder / str(step)} is damaged ({damage}){aside}")
            else:
                step, files = None, Path()
            if damaged:
                others = f", and so are {len(damaged) - 1} before it" if damaged[1:] else ""
                used = "no other step is whole" if step is None else f"step {step} is used"
                self._say(f"{damaged[0]}{others}; {used}.")
            if step is not None:
                self._check_config(files)
            yield step, files

    def _check_config(self, files: Path) -> None:
        """Raises UserError if a run with another config saved the step."""
        found = config_of(files)
        if found and self._config and found != self._config:
            raise UserError(
                f"{self.folder / files.name} was saved by a run of another config (SHA-256"
                f" {found[:12]}...; this run's is {self._config[:12]}...). Move that folder out of"
                " here, or put back the config.json that belongs to it."
            )

    def has_damaged(self) -> bool:
        """Whether the folder has a step that was set aside as damaged."""
        return any(self.folder.glob("*.damaged*"))

    def restore(self, step: int | None = None) -> dict[str, Any]:
        """The state dict that was saved at `step`, as host arrays.

        `step`: by default the newest undamaged one. Raises UserError if it is missing, damaged or
        from another run. If it is missing, the message names the steps that exist.
        """
        with self._readable(), self._whole(step) as (step, files):
            try:
                return trees.load(files)
            except Exception as error:  # Orbax raises errors of many types.
                path = self.folder / str(step)
                raise UserError(f"Cannot read the checkpoint {path} ({summary(error)}).") from error

    @contextlib.contextmanager
    def _whole(self, step: int | None) -> Iterator[tuple[int, Path]]:
        """Yields an undamaged step (the newest by default) and the folder of its files.

        Raises UserError if it is missing, damaged or from another run.
        """
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
        step = int(step)  # A table may have given 4.0.
        with self._folders.files(step) as files:
            if damage := damage_of(files):
                raise UserError(
                    f"{self.folder / str(step)} is damaged ({damage}). The saved steps are"
                    f" {self.steps()}."
                )
            self._check_config(files)
            yield step, files

    def restore_into(self, state: T, step: int | None = None) -> T:
        """Returns `state` with the values that were saved at `step`.

        `state`: its leaves need only a shape and a dtype. Raises UserError if the saved leaves have
        other names, shapes or dtypes: then they are from another model.
        """
        saved = self.restore(step)
        expected = serialization.to_state_dict(state)
        if saved.keys() < expected.keys():
            missing = ", ".join(sorted(expected.keys() - saved.keys()))
            raise UserError(
                f"The checkpoint in {self.folder} lacks {missing}, like an exported run: training"
                " cannot go on from it. Begin a new run from it with --config.init_from."
            )
        self.check_same(expected, saved)
        return serialization.from_state_dict(state, saved)

    def check_same(self, expected: Any, found: Any) -> None:
        """Raises UserError unless the leaves of two state dicts agree in name, shape and dtype."""
        expected, found = trees.shapes(expected), trees.shapes(found)
        for name in sorted(expected.keys() | found.keys()):
            if expected.get(name) != found.get(name):
                raise UserError(
                    f"The checkpoint in {self.folder} is of another model: expected {name} to be"
                    f" {expected.get(name, 'absent')}, got {found.get(name, 'absent')}."
                )


class CheckpointWriter:
    """Saves checkpoints in the background. Use as a context manager, which waits for the last save.

    A step appears only after it was read back and compared. With several processes, all of them
    call these methods, and the first one writes.
    """

    def __init__(
        self,
        folder: AnyPath,
        *,
        keep_every: int,
        attempt: int,
        held: Held,
        say: Callable[[str], None],
        config: str | None = None,
    ):
        """Makes the folder if it is missing, and deletes unfinished files that a crash left.

        - `keep_every`: as in `kept_steps`.
        - `attempt`: part of the names of unfinished files, so that those of two writers differ.
        - `held`: a context for each write. It raises if another process has taken the run over.
        - `config`: the digest of the run's config, saved with each step.
        """
        self.reader = Checkpoints(folder, config=config, say=say, set_aside=self._set_aside)
        """Reads this folder, and renames the steps that it finds damaged."""
        self._folder, self._say, self._config = folder, say, config
        self._folders = step_folders(folder)
        self._first = jax.process_index() == 0
        if self._first:
            with held():
                self._folders.prepare()
        self._keep_every, self._attempt, self._held = keep_every, attempt, held
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._save: Future[None] | None = None
        self.saved: int | None = None
        """The last step that is saved: whole and on disk."""
        self._quiet = trees.quiet()

    def __enter__(self) -> "CheckpointWriter":
        self._quiet.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc_info: object) -> None:
        """Waits for the last save. Raises its error, unless the context ends by another error."""
        try:
            with contextlib.suppress(*([Exception] if kind else [])):
                self.wait()
        finally:
            self._thread.shutdown()
            if self._first:
                self._folders.close()
            self._quiet.__exit__(None, None, None)

    def save(self, step: int, state: Any, test_errors: Mapping[int, float]) -> None:
        """Begins to save. When this returns, the state may be donated.

        - `state`: a training state, or its `trees.host_tree`.
        - `test_errors`: step -> test error, of the steps evaluated so far. The best step is kept.

        Raises FaultError if the previous save failed.
        """
        self.wait()
        tree = trees.host_tree(state)
        part = self._folders.part(step, self._attempt)
        with self._faults(step, part), contextlib.ExitStack() as stack:
            if self._first:
                stack.enter_context(self._held())  # Else Orbax would recreate a deleted folder.
            write = trees.save(part, tree)
        self._save = self._thread.submit(self._finish, step, part, write, dict(test_errors))

    def wait(self) -> None:
        """Waits until the last save is on disk. Raises FaultError if the save failed."""
        save, self._save = self._save, None
        if save is not None:
            save.result()

    def close(self, test_errors: Mapping[int, float]) -> None:
        """Waits for the last save. Then deletes old steps, by the test errors known at the end."""
        self.wait()
        if self._first:
            self._delete_old(test_errors)

    def poll(self) -> None:
        """Raises FaultError if the last save has failed. Does not wait for it."""
        if self._save is not None and self._save.done():
            self.wait()

    def _finish(
        self, step: int, part: Path, write: trees.Write, test_errors: Mapping[int, float]
    ) -> None:
        with self._faults(step, part):
            write()
            if self._first:
                label(part, step, self._config)
                self._folders.publish(part, step, self._held)
                self._delete_old(test_errors)
            self.saved = step

    @contextlib.contextmanager
    def _faults(self, step: int, part: Path) -> Iterator[None]:
        """Turns an error in a save into a FaultError of one line, and deletes unfinished files."""
        try:
            yield
        except Exception as error:
            if self._first:
                self._folders.discard(part)
            if isinstance(error, FaultError):
                raise
            raise FaultError(
                f"Cannot save step {step} in {self._folder}: {trees.reason(error)}. {GOES_ON}"
            ) from error

    def _delete_old(self, test_errors: Mapping[int, float]) -> None:
        steps = self.reader.steps()
        try:
            for step in set(steps) - kept_steps(steps, self._keep_every, test_errors):
                with self._held():  # Only the holder of the lock may delete steps.
                    self._folders.delete(step)
        except OSError as error:  # No reason to stop: all steps to keep are there.
            self._say(f"Cannot delete an old checkpoint in {self._folder}: {trees.reason(error)}.")

    def _set_aside(self, step: int) -> str:
        with self._held():
            return self._folders.set_aside(step)
