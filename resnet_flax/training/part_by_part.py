"""Runs a network part by part, so that one can look at the values between its parts.

It compiles equal blocks only once, so depth costs no compile time. All functions run in train mode,
with the BN statistics of the batch, on one device. B: batch; K: classes.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from resnet_flax.errors import UserError
from resnet_flax.models import stacking
from resnet_flax.models.resnet import ResNet
from resnet_flax.runtime import cpu
from resnet_flax.training import metrics
from resnet_flax.training.steps import Batch

Variables = dict[str, Any]
"""`params` and `batch_stats`, each a dict from names of parts to trees. Blocks may be stacked."""
Look = Callable[[nn.Module, Variables, jax.Array, jax.Array], tuple[jax.Array, Any]]
"""Takes a part, its own variables, its input x and dL/dy. Returns dL/dx and what it found."""


def parts_of(model: nn.Module) -> list[nn.Module]:
    """The parts of a network: block by block, in train mode, on one device.

    Each part is called on the output of the one before. The last gives logits [B, K]. Raises
    UserError for a network without blocks, such as VGG.
    """
    if not isinstance(model, ResNet):
        raise UserError(f"Expected a plain or residual network, got {type(model).__name__}.")
    parts: list[Any] = model.clone(scan=False, remat=False, norm_axis=None).parts(train=True)
    return parts  # With `scan=False` there are no loops over blocks, so all parts are modules.


def outputs(parts: Sequence[nn.Module], variables: Variables, image: jax.Array) -> list[jax.Array]:
    """The output of every part. `image` is [B, H, W, C], normalised."""
    found, variables = [], stacking.unstack(variables)
    for part in parts:
        image = compiled(_forward)(part.clone(name=None), own(part, variables), image)
        found.append(image)
    return found


def look_back(
    parts: Sequence[nn.Module], variables: Variables, batch: Batch, look: Look
) -> tuple[jax.Array, list[Any]]:
    """The mean loss, and what `look` finds in each part on the way from the loss to the image."""
    variables = stacking.unstack(variables)
    *inputs, logits = [batch.image, *outputs(parts, variables, batch.image)]
    loss, dy = _loss_and_gradient(logits, batch.label)
    found = []
    for part, x in zip(reversed(parts), reversed(inputs), strict=True):
        dy, finding = compiled(look)(part.clone(name=None), own(part, variables), x, dy)
        found.append(finding)
    return loss, found[::-1]


def gradients(
    parts: Sequence[nn.Module], variables: Variables, batch: Batch
) -> tuple[dict[str, Any], dict[str, jax.Array]]:
    """Gradients of the mean loss by each part's parameters, and by each part's input."""
    names = [str(part.name) for part in parts]
    of_params, of_inputs = zip(*look_back(parts, variables, batch, _gradients)[1], strict=True)
    return dict(zip(names, of_params, strict=True)), dict(zip(names, of_inputs, strict=True))


def norm(x: jax.Array) -> jax.Array:
    """The L2 norm, also if squares are too small or too large for float32."""
    x = x.astype(jnp.float32)
    scale = jnp.maximum(jnp.max(jnp.abs(x)), jnp.finfo(jnp.float32).tiny)
    return scale * jnp.linalg.norm(x / scale)


def own(part: nn.Module, variables: Variables) -> Variables:
    """The variables of one part, from those of a network whose blocks are not stacked."""
    return {key: tree[part.name] for key, tree in variables.items() if part.name in tree}


@functools.cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function whose first argument is a part without a name."""
    return jax.jit(function, static_argnums=0, compiler_options=cpu.quick_compilation())


def _forward(part: nn.Module, variables: Variables, x: jax.Array) -> jax.Array:
    y, _ = part.apply(variables, x, mutable=["batch_stats"])
    return y


def _gradients(
    part: nn.Module, variables: Variables, x: jax.Array, dy: jax.Array
) -> tuple[jax.Array, tuple[Any, jax.Array]]:
    def output(params: Any, x: jax.Array) -> jax.Array:
        return _forward(part, {**variables, "params": params}, x)

    dparams, dx = jax.vjp(output, variables.get("params", {}), x)[1](dy)
    return dx, (dparams, dx)


@jax.jit
def _loss_and_gradient(logits: jax.Array, label: jax.Array) -> tuple[jax.Array, jax.Array]:
    def loss(logits: jax.Array) -> jax.Array:
        return metrics.cross_entropy(logits, label).mean()

    return jax.value_and_grad(loss)(logits)
