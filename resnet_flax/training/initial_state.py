"""Where a run begins: at its seed, at another run's checkpoint, or at its own last one."""

import functools
import hashlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from resnet_flax.config import RunConfig
from resnet_flax.errors import UserError
from resnet_flax.models import stacking
from resnet_flax.runtime import cpu, hosts
from resnet_flax.runtime.parallel import Devices
from resnet_flax.runtime.progress import RunProgress
from resnet_flax.storage.checkpoints import Checkpoints, CheckpointWriter
from resnet_flax.storage.run_folder import RunFolder
from resnet_flax.training import build, steps
from resnet_flax.training.build import Experiment
from resnet_flax.training.transfer import transfer


def initial_state(built: Experiment, say: Callable[[str], None]) -> steps.TrainState:
    """Before the first step, as host arrays.

    Its parameters are those of the seed, whether the network is scanned or not, or those of
    `config.init_from`, of which `say` hears. Raises UserError if that is no run's folder or does
    not fit.
    """
    seed, mean = np.uint32(built.config.seed), built.train.image_mean()
    init = jax.jit(_stacked(built), compiler_options=cpu.quick_compilation())
    state = stacking.unstack(jax.device_get(init(seed, mean)))
    if built.config.init_from:
        state = state.replace(**_transferred(built, state.variables, say))
    return _as_trained(built, state)


class Beginning:
    """Where an attempt at a run begins.

    The initial state of a new run is made at once, before anything is written: `config.init_from`
    may not fit.
    """

    def __init__(
        self, built: Experiment, folder: RunFolder, progress: RunProgress, *, from_scratch: bool
    ):
        """`from_scratch`: whether to begin again where no saved step is left whole."""
        self.built, self.folder, self.progress = built, folder, progress
        self._from_scratch = from_scratch
        begun = hosts.agree(folder.checkpoints.is_dir())
        self._initial = None if begun else initial_state(built, self._say)

    def state(self, checkpoints: CheckpointWriter, saved: int) -> tuple[int, steps.TrainState]:
        """The step that the attempt begins at, and the state there, on all devices.

        - `checkpoints`: those of the run.
        - `saved`: the last step saved, as far as the records know.

        Raises UserError if steps were saved and none is whole.
        """
        with hosts.alike():
            found = self._last_whole(checkpoints.reader, saved) if hosts.is_first() else None
        step = hosts.agree(-1 if found is None else found)
        if step >= 0:
            state = checkpoints.reader.restore_into(state_shapes(self.built), step)
            state = _as_trained(self.built, state)
            self._say(f"resuming from step {step}.")
            return step, self.built.devices.replicate(state)
        initial, self._initial = self._initial or initial_state(self.built, self._say), None
        if self.built.config.init_from:  # From here on the other run may change.
            checkpoints.save(0, stacking.unstack(initial), {})
        return 0, self.built.devices.replicate(initial)

    def _last_whole(self, reader: Checkpoints, saved: int) -> int | None:
        step = reader.last_good()
        if step is None and (saved or reader.has_damaged()) and not self._from_scratch:
            folder = self.folder
            raise UserError(
                f"{folder.path} has a history, but no whole checkpoint to go on from. Put one back"
                f" into {folder.checkpoints}, or begin again: train ... --from_scratch."
            )
        return step

    def _say(self, line: str) -> None:
        self.progress.say(f"{self.folder.name}: {line}")


def initial_variables(config: RunConfig, say: Callable[[str], None]) -> dict[str, Any]:
    """Parameters and statistics of a run before its first step, block by block."""
    device = Devices(config.parallel, jax.devices()[:1])
    built = build.build(config, device)
    return stacking.unstack(initial_state(built, say).variables)


def state_shapes(built: Experiment) -> steps.TrainState:
    """The shapes and dtypes of a saved state, block by block, found without computing it."""

    def init(seed: jax.Array, mean: jax.Array) -> steps.TrainState:
        return stacking.unstack(_stacked(built)(seed, mean))

    return jax.eval_shape(init, np.uint32(0), built.train.image_mean())


def _as_trained(built: Experiment, state: steps.TrainState) -> steps.TrainState:
    """A state of single blocks, stacked if the network of the run is scanned."""
    return stacking.stack(state) if build.scans(built.config.model) else state


def _stacked(built: Experiment) -> Callable[[Any, Any], steps.TrainState]:
    """The initial state with stacked blocks, which compiles fast at any depth."""
    is_vgg = built.config.model.family == "vgg"
    model = built.model if is_vgg else built.model.clone(scan=True)
    shape = built.train.image_shape
    return functools.partial(steps.init_state, model, built.optimizer, image_shape=shape)


def _transferred(
    built: Experiment, variables: dict[str, Any], say: Callable[[str], None]
) -> dict[str, Any]:
    """These variables with the arrays of `init_from`."""
    folder = RunFolder(built.config.init_from)
    try:
        with hosts.alike():
            saved = Checkpoints(folder.checkpoints, config=folder.config_digest(), say=say)
            step = saved.last_good()
        step = hosts.agree(-1 if step is None else step)  # That run may still be on.
        with hosts.alike() as facts:
            source = saved.restore(None if step < 0 else step)
            merged, left = transfer(variables, source, partial=built.config.init_partial)
            facts["init_from"] = _digest(source)
    except UserError as error:
        raise UserError(f"config.init_from={built.config.init_from}: {error}") from error
    line = f"initialised from step {step} of {folder.path}"
    say(f"{line}, left over: {', '.join(left) or 'nothing'}.")
    return merged


def _digest(tree: Any) -> str:
    sha = hashlib.sha256()
    for leaf in jax.tree.leaves(jax.device_get(tree)):
        sha.update(leaf.tobytes())
    return sha.hexdigest()[:12]
