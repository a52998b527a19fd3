"""Makes the first state of a run: from its seed, another run, or its own last checkpoint."""

import contextlib
import functools
import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import optax
from flax import linen as nn

from resnet_flax.config import RunConfig
from resnet_flax.errors import UserError
from resnet_flax.models import stacking
from resnet_flax.models.resnet import ResNet
from resnet_flax.runtime import cpu, hosts
from resnet_flax.runtime.parallel import Devices
from resnet_flax.runtime.progress import RunProgress
from resnet_flax.storage.checkpoint_writer import CheckpointWriter
from resnet_flax.storage.checkpoints import Checkpoints
from resnet_flax.storage.run_folder import RunFolder
from resnet_flax.training import architecture, build, optim, steps
from resnet_flax.training.build import Experiment, Program
from resnet_flax.training.transfer import transfer
from resnet_flax.training.twin import norm_factors


def initial_state(built: Experiment, say: Callable[[str], None]) -> steps.TrainState:
    """The state before the first step, as host arrays.

    The parameters come from the seed, and are the same with and without `scan`. With
    `config.init_from` they come from that run, and `say` gets a line on it. Raises UserError if
    `init_from` is not the folder of a run, or does not fit.
    """
    seed, mean = np.uint32(built.config.seed), built.train.image_mean()
    state = stacking.unstack(jax.device_get(_init(built)(seed, mean)))
    if built.config.init_from:
        state = state.replace(**_transferred(built, state.variables, say))
    if built.config.optim.norms_of:
        state = state.replace(opt_state=_with_norms_of_twin(built, state))
    return _as_trained(built, state)


class Beginning:
    """The step and the state with which an attempt at a run begins.

    A new run computes its initial state at once. If `config.init_from` does not fit, this raises
    before anything is written.
    """

    def __init__(
        self, built: Experiment, folder: RunFolder, progress: RunProgress, *, from_scratch: bool
    ):
        """`from_scratch`: whether to start again if no checkpoint is complete."""
        self.built, self.folder, self.progress = built, folder, progress
        self._from_scratch = from_scratch
        begun = hosts.agree(folder.checkpoints.is_dir())
        self._initial = None if begun else initial_state(built, self._say)

    def state(self, checkpoints: CheckpointWriter, saved: int) -> tuple[int, steps.TrainState]:
        """The step at which the attempt begins, and the state there, on all devices.

        - `checkpoints`: the checkpoints of the run.
        - `saved`: the last step saved, according to the records.

        Raises UserError if steps were saved but no checkpoint is complete.
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
        if self.built.config.init_from:  # Saved here, so that the other run may change later.
            checkpoints.save(0, stacking.unstack(initial), {})
        return 0, self.built.devices.replicate(initial)

    def _last_whole(self, reader: Checkpoints, saved: int) -> int | None:
        step = reader.last_good()
        if step is None and (saved or reader.has_damaged()) and not self._from_scratch:
            folder = self.folder
            raise UserError(
                f"{folder.path} has a history, but no complete checkpoint to resume from. Put one"
                f" back into {folder.checkpoints}, or start again: delete {folder.path}. Outside a"
                " sweep, train ... --from_scratch does it, too."
            )
        return step

    def _say(self, line: str) -> None:
        self.progress.say(f"{self.folder.name}: {line}")


def initial_variables(config: RunConfig, say: Callable[[str], None]) -> dict[str, Any]:
    """Parameters and BN statistics of a run before its first step, block by block."""
    # Test images and factors of gradients change no variable, and take time to read and to measure.
    data = config.data.model_copy(update={"test_split": config.data.train_split})
    optimizer = config.optim.model_copy(update={"norms_of": ""})
    config = config.model_copy(update={"data": data, "optim": optimizer})
    built = build.build(config, Devices(config.parallel, jax.local_devices()[:1]))
    return stacking.unstack(initial_state(built, say).variables)


def state_shapes(program: Program) -> steps.TrainState:
    """The shapes and dtypes of a saved state, block by block, found without computing it."""
    shapes = _shapes(_init(program), program)
    return jax.eval_shape(stacking.unstack, shapes)


def trained_shapes(program: Program) -> steps.TrainState:
    """The shapes and dtypes of a state in training, found without computing it."""
    if architecture.scans(program.config.model):
        return _shapes(_init(program), program)
    return state_shapes(program)


def _shapes(init: Any, program: Program) -> steps.TrainState:
    mean = jax.ShapeDtypeStruct(program.images.mean_shape, np.float32)
    return init.eval_shape(np.uint32(0), mean)


def _as_trained(program: Program, state: steps.TrainState) -> steps.TrainState:
    """A state of single blocks, stacked if the network of the run is scanned."""
    return stacking.stack(state) if architecture.scans(program.config.model) else state


def _init(program: Program) -> Any:
    """A jitted function that makes the initial state, with stacked blocks: it compiles fast."""
    model = program.model
    if isinstance(model, ResNet):
        model = model.clone(scan=True)
    return _jitted_init(model, program.optimizer, program.images.image_shape)


@functools.lru_cache(maxsize=64)
def _jitted_init(
    model: nn.Module, optimizer: optax.GradientTransformation, image_shape: tuple[int, int, int]
) -> Any:
    init = functools.partial(steps.init_state, model, optimizer, image_shape=image_shape)
    return jax.jit(init, compiler_options=cpu.quick_compilation())


def _with_norms_of_twin(built: Experiment, state: steps.TrainState) -> Any:
    """The optimiser's state, with the factors that give each gradient the norm of the twin's."""
    train = built.train
    with hosts.alike():
        mean, variables = train.image_mean(), state.variables
        factors = norm_factors(built.config, train.num_classes, mean, variables)
    # Devices of several processes may differ in the last bits.
    factors = hosts.of_first(factors)

    def of_network(ones: Any) -> Any:
        parts = {name: factors[name] for name in ones}  # In the order of the state.
        return jax.tree.map(np.full_like, ones, parts)

    return optim.set_factors(state.opt_state, of_network)


def _transferred(
    built: Experiment, variables: dict[str, Any], say: Callable[[str], None]
) -> dict[str, Any]:
    """`variables`, with the arrays of `init_from` in place of those that fit."""
    with _named(built.config.init_from):
        with hosts.alike():
            saved = _checkpoints(built.config.init_from, say)
            step = saved.last_good()
        # That run may still save checkpoints, so processes may see different last steps.
        step = hosts.agree(-1 if step is None else step)
        with hosts.alike() as facts:
            source = saved.restore(None if step < 0 else step)
            merged, left = transfer(variables, source, partial=built.config.init_partial)
            facts["init_from"] = _digest(source)
    line = f"initialised from step {step} of {RunFolder(built.config.init_from).path}"
    say(f"{line}, left over: {', '.join(left) or 'nothing'}.")
    return merged


def check_source(init_from: str, say: Callable[[str], None]) -> None:
    """Raises UserError if a folder is not that of a run with a complete checkpoint."""
    with _named(init_from):
        saved = _checkpoints(init_from, say)
        if saved.last_good() is None:
            saved.restore()  # It says why.


def _checkpoints(init_from: str, say: Callable[[str], None]) -> Checkpoints:
    folder = RunFolder(init_from)
    return Checkpoints(folder.checkpoints, config=folder.config_digest(), say=say)


@contextlib.contextmanager
def _named(init_from: str) -> Iterator[None]:
    """Names the field in a UserError about that run."""
    try:
        yield
    except UserError as error:
        raise UserError(f"config.init_from={init_from}: {error}") from error


def _digest(tree: Any) -> str:
    sha = hashlib.sha256()
    for leaf in jax.tree.leaves(jax.device_get(tree)):
        sha.update(np.asarray(leaf).tobytes())
    return sha.hexdigest()[:12]
