"""Saves training states in the background."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from resnet_flax.errors import GOES_ON, FaultError
from resnet_flax.runtime import hosts
from resnet_flax.storage import trees
from resnet_flax.storage.checkpoints import Checkpoints
from resnet_flax.storage.filesystem import AnyPath
from resnet_flax.storage.step_folders import Held, kept_steps, label, step_folders


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
        self._first = hosts.is_first()
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
