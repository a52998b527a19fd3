"""Saves and restores training states: the only importer of Orbax."""

from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from flax import serialization
from orbax.checkpoint import v1 as ocp

from resnet_flax.errors import UserError

KEPT = 2
T = TypeVar("T")


class Checkpoints:
    """The checkpoints of one run, `folder/<step>/`; the last `KEPT` are kept.

    States are stored as nested dicts of host arrays, so they restore on any number of devices and
    without the code that made them.
    """

    def __init__(self, folder: Path):
        """Reads the folder, or makes it; what a crash left half-written is deleted."""
        self.folder = folder
        self._checkpointer = ocp.training.Checkpointer(
            folder,
            preservation_policy=ocp.training.preservation_policies.LatestN(KEPT),
            cleanup_tmp_directories=True,
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
        abstract = self._checkpointer.metadata(step).metadata
        target = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), abstract)
        return self._checkpointer.load(step, target)

    def restore_into(self, state: T, step: int | None = None) -> T:
        """`state` with the values saved at `step`, by default the last."""
        return serialization.from_state_dict(state, self.restore(step))
