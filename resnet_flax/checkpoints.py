"""Saves and restores training states: the only importer of Orbax."""

from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from flax import serialization
from orbax.checkpoint import v1 as ocp

from resnet_flax.errors import UserError, summary

KEPT = 2
T = TypeVar("T")


class Checkpoints:
    """The checkpoints of one run, `folder/<step>/`; the last `KEPT` are kept.

    States are stored as nested dicts of host arrays, so they restore on any number of devices and
    without the code that made them.
    """

    def __init__(self, folder: Path, *, writable: bool = False):
        """Opens a folder to restore from it, or, if `writable`, makes it if need be to save too.

        A writer deletes what a crash left half-written; a reader may come while a run is saving,
        and leaves all as it is. Raises UserError if a reader finds no folder.
        """
        if not writable and not folder.is_dir():
            raise UserError(f"No checkpoint in {folder}.")
        self.folder = folder
        self._checkpointer = ocp.training.Checkpointer(
            folder,
            preservation_policy=ocp.training.preservation_policies.LatestN(KEPT),
            cleanup_tmp_directories=writable,
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Waits for the last save; its error is raised."""
        self._checkpointer.close()

    def steps(self) -> list[int]:
        """The steps that can be restored, ascending."""
        return sorted(checkpoint.step for checkpoint in self._checkpointer.checkpoints)

    def save(self, step: int, state: Any) -> None:
        """Saves in the background; the state may be donated or changed as soon as this returns."""
        tree = serialization.to_state_dict(jax.device_get(state))
        self._checkpointer.save_async(step, tree, force=True)

    def restore(self, step: int | None = None) -> dict[str, Any]:
        """The state dict saved at `step`, by default the last, as host arrays.

        Raises UserError if there is none, naming the steps there are.
        """
        steps = self.steps()
        if not steps:
            raise UserError(f"No checkpoint in {self.folder}.")
        step = steps[-1] if step is None else step
        if step not in steps:
            raise UserError(f"No checkpoint of step {step} in {self.folder}; there are: {steps}.")
        try:
            abstract = self._checkpointer.metadata(step).metadata
            target = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), abstract)
            return self._checkpointer.load(step, target)
        except Exception as error:  # Orbax lets through what its many parts raise.
            raise UserError(
                f"The checkpoint {self.folder / str(step)} is damaged ({summary(error)}). Move it"
                " away to go on from the one before it."
            ) from error

    def restore_into(self, state: T, step: int | None = None) -> T:
        """`state`, whose leaves need a shape and dtype alone, with the values saved at `step`.

        Raises UserError if what was saved has other leaves: it is another model's.
        """
        saved = self.restore(step)
        expected, found = (_leaves(tree) for tree in (serialization.to_state_dict(state), saved))
        for name in sorted(expected.keys() | found.keys()):
            if expected.get(name) != found.get(name):
                raise UserError(
                    f"The checkpoint in {self.folder} is of another model: expected {name} to be"
                    f" {expected.get(name, 'absent')}, got {found.get(name, 'absent')}."
                )
        return serialization.from_state_dict(state, saved)


def _leaves(tree: Any) -> dict[str, str]:
    """Dotted name -> type and shape of each array of a state dict."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
