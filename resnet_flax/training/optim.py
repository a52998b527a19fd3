"""The optimisers, the paper's learning-rate schedule, and changes to gradients and updates.

All from plain arguments. Everything is a chain of optax's transformations, or ends in one.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from resnet_flax.models import stacking
from resnet_flax.models.resnet import part_of


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
    layerwise: bool = False,
) -> optax.GradientTransformation:
    """SGD: v <- momentum v + (g + weight_decay w);  w <- w - lr v.

    Weight decay is part of the momentum, as in Caffe, which the paper used. The rate is not: Caffe
    has it inside v. Weight decay applies to kernels.
    With `decay_bn_and_bias` it also applies to BN scales and to every bias.

    With `layerwise` it is LARS (You et al. 2017, arXiv 1708.03888) with trust coefficient 1:
    u <- g + weight_decay w;  v <- momentum v + lr u |w| / |u|;  w <- w - v. BN scales and biases go
    without the factor |w| / |u|.
    """
    decay = _decay(weight_decay, decay_bn_and_bias)
    if not layerwise:
        return optax.chain(decay, optax.sgd(schedule, momentum=momentum, nesterov=nesterov))
    return optax.chain(  # As optax.lars, which would take a stack of kernels for one.
        decay,
        optax.stateless(_to_norms_of_kernels),
        optax.scale_by_learning_rate(schedule),
        optax.trace(momentum, nesterov),
    )


def adam(
    schedule: optax.Schedule,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
    nesterov: bool = False,
    weight_decay: float = 1e-4,
    decay_bn_and_bias: bool = True,
) -> optax.GradientTransformation:
    """Adam (Kingma and Ba 2015, arXiv 1412.6980). Weight decay is added to the gradient."""
    return optax.chain(
        _decay(weight_decay, decay_bn_and_bias),
        optax.adam(schedule, b1=beta1, b2=beta2, eps=epsilon, nesterov=nesterov),
    )


def with_clipping(
    optimizer: optax.GradientTransformation, norm: float, frozen: Collection[str] = ()
) -> optax.GradientTransformation:
    """Shortens gradients whose L2 norm, over all trained parameters together, is above `norm`.

    `frozen`: the parts that are not trained, as in `with_frozen`.
    """
    clipped = optax.chain(optax.clip_by_global_norm(norm), optimizer)

    def update(gradients: Any, state: Any, params: Any = None) -> Any:
        trained = {
            name: jax.tree.map(jnp.zeros_like, tree) if part_of(name) in frozen else tree
            for name, tree in gradients.items()
        }
        return clipped.update(trained, state, params)

    return optax.GradientTransformation(clipped.init, update)


def with_frozen(
    optimizer: optax.GradientTransformation, parts: Collection[str]
) -> optax.GradientTransformation:
    """Leaves the parameters of some parts as they are. `parts`: names in `models.resnet.Part`."""

    def mask(params: dict[str, Any]) -> dict[str, Any]:
        return {
            name: jax.tree.map(lambda _, name=name: part_of(name) in parts, tree)
            for name, tree in params.items()
        }

    return optax.chain(optimizer, optax.masked(optax.set_to_zero(), mask))


class FactorState(NamedTuple):
    """The state of `with_factors`."""

    factors: Any  # As the parameters, each an array of one element.


def with_factors(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """Multiplies each parameter's gradient by a factor of the state: 1 until `set_factors`."""

    def one(path: Any, p: jax.Array) -> jax.Array:
        blocks = p.shape[: stacking.stands_in_stack(path)]
        return jnp.ones(blocks + (1,) * (p.ndim - len(blocks)), p.dtype)

    def init(params: Any) -> FactorState:
        return FactorState(jax.tree_util.tree_map_with_path(one, params))

    def update(updates: Any, state: FactorState, params: Any = None) -> tuple[Any, FactorState]:
        return jax.tree.map(jnp.multiply, updates, state.factors), state

    return optax.chain(optax.GradientTransformation(init, update), optimizer)


def set_factors(opt_state: Any, factor: Callable[[Any], Any]) -> Any:
    """The state of an optimiser `with_factors`, with other factors.

    `factor`: takes the tree of the factors and returns one of the same structure and shapes.
    """

    def is_factors(node: Any) -> bool:
        return isinstance(node, FactorState)

    def changed(node: Any) -> Any:
        return FactorState(factor(node.factors)) if is_factors(node) else node

    return jax.tree.map(changed, opt_state, is_leaf=is_factors)


def _decay(weight_decay: float, bn_and_bias: bool) -> optax.GradientTransformation:
    return optax.add_decayed_weights(weight_decay, None if bn_and_bias else _is_kernel)


def _to_norms_of_kernels(updates: Any, params: Any) -> Any:
    def scaled(update: jax.Array, param: jax.Array) -> Any:
        return optax.scale_by_trust_ratio().update(update, optax.EmptyState(), param)[0]

    def of_leaf(path: Any, update: jax.Array, param: jax.Array) -> Any:
        if path[-1].key != "kernel":
            return update
        return (jax.vmap(scaled) if stacking.stands_in_stack(path) else scaled)(update, param)

    return jax.tree_util.tree_map_with_path(of_leaf, updates, params)


def _is_kernel(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key == "kernel", params)
