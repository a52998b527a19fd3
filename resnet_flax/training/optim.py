"""SGD with momentum and the paper's learning-rate schedule, from plain arguments."""

from collections.abc import Sequence
from typing import Any

import jax
import optax


def learning_rate(
    peak: float,
    boundaries: Sequence[int] = (),
    decay_factor: float = 0.1,
    warmup_steps: int = 0,
    warmup_lr: float = 0.01,
) -> optax.Schedule:
    """The schedule of Sec. 4.2: `peak`, times `decay_factor` at each boundary.

    A boundary is a number of steps from the start. For the first `warmup_steps` steps the rate is
    `warmup_lr`. The paper does this for depth 110: 0.01 for about 400 steps.
    """
    drops = {int(boundary): decay_factor for boundary in boundaries}
    constant = optax.piecewise_constant_schedule(peak, drops)
    if not warmup_steps:
        return constant
    return lambda step: jax.numpy.where(step < warmup_steps, warmup_lr, constant(step))


def sgd(
    schedule: optax.Schedule,
    momentum: float = 0.9,
    nesterov: bool = False,
    weight_decay: float = 1e-4,
    decay_bn_and_bias: bool = True,
) -> optax.GradientTransformation:
    """SGD: v <- momentum v + (g + weight_decay w);  w <- w - lr v.

    Weight decay is part of the momentum, as in Caffe, which the paper used. It applies to kernels.
    With `decay_bn_and_bias` it also applies to BN scales and to every bias.
    """
    mask = None if decay_bn_and_bias else _is_kernel
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask),
        optax.sgd(schedule, momentum=momentum, nesterov=nesterov),
    )


def _is_kernel(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)
