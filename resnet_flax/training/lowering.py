"""Lowers the steps of a run from its config and its data set's description. It reads no images."""

import jax

from resnet_flax.runtime import bits
from resnet_flax.training import build
from resnet_flax.training.build import Program
from resnet_flax.training.feed import training_shapes
from resnet_flax.training.initial_state import trained_shapes


@bits.pinned()
def lower_training(program: Program) -> jax.stages.Lowered:
    """Lowers the steps of one dispatch for all devices of a program, as training runs them.

    The devices may be those of a described pod: nothing is put on them.
    """
    return build.map_training(program).lower(*training_arguments(program))  # type: ignore[attr-defined]


@bits.pinned()
def training_arguments(program: Program) -> tuple[object, object, object]:
    """The shapes of the arguments of `build.map_training`: state, resident images, inputs."""
    config, devices = program.config, program.devices
    state = devices.replicated_shapes(trained_shapes(program))
    batch_size, per_dispatch = config.data.batch_size, config.steps_per_dispatch
    return state, *training_shapes(program.images, devices, batch_size, per_dispatch)
