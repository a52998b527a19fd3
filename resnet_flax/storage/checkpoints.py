"""Verifies and restores the training states that `checkpoint_writer.py` saves."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from flax import serialization

from resnet_flax.errors import UserError, complain, summary
from resnet_flax.storage import trees
from resnet_flax.storage.filesystem import AnyPath
from resnet_flax.storage.step_folders import config_of, damage_of, step_folders

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
                f"No checkpoint of step {step!r} in {self.folder}; there are: {self.steps()}."
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
