"""Gradient flow and layer responses, which show why a network does or does not train.

Source: Sec. 4.1 and Fig. 7. This file runs the forward and the backward pass of each part itself.
So it can look at the values between parts. It compiles equal blocks only once, so depth costs no
compile time. All functions run in train mode, with the BN statistics of the batch, on one device.

B: batch; K: classes.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from resnet_flax.errors import UserError
from resnet_flax.models import blocks
from resnet_flax.models.resnet import ResNet
from resnet_flax.runtime import cpu
from resnet_flax.storage.findings import Layer, Layers
from resnet_flax.training import metrics
from resnet_flax.training.steps import Batch

WEIGHTED = (nn.Conv, nn.Dense)
NORMS = (nn.BatchNorm, blocks.Identity)


class Seen(NamedTuple):
    """Values inside one part of a network, by the names of its layers."""

    inputs: dict[str, jax.Array]  # The input of each weighted layer.
    responses: dict[str, jax.Array]  # The output of each norm.


def parts_of(model: nn.Module) -> list[nn.Module]:
    """The parts of a network for `layer_statistics`: block by block, in train mode, on one device.

    Raises UserError for VGG, which has no blocks.
    """
    if not isinstance(model, ResNet):
        raise UserError("Expected a plain or residual network, got VGG.")
    parts: list[Any] = model.clone(scan=False, remat=False, norm_axis=None).parts(train=True)
    return parts  # With `scan=False` there are no loops over blocks, so all parts are modules.


def layer_statistics(
    parts: Sequence[nn.Module],
    variables: dict[str, Any],
    batches: Iterable[Batch],
    step: int = 0,
) -> Layers:
    """Gradient flow and responses of every weighted layer, as means over batches.

    - `parts`: modules, each called on the output of the one before. The last gives logits [B, K].
    - `variables`: `params` and `batch_stats`, each a dict from names of parts to trees. Blocks are
      not stacked.
    """
    measured = [_of_batch(parts, variables, batch) for batch in batches]
    if not measured:
        raise ValueError("Expected at least one batch, got none.")
    names = list(measured[0][1])  # Taken before `device_get`, which would sort them.
    losses, by_batch, sizes = zip(*jax.device_get(measured), strict=True)
    lost = ~np.isfinite(losses)
    layers = []
    for name in names:
        means = {}
        for key in by_batch[0][name]:
            values = np.array([of_batch[name][key] for of_batch in by_batch])
            # If ReLU reads NaN, it passes a gradient of 0. So without a finite loss, gradients are
            # NaN here.
            means[key] = _mean(values if key == "response_std" else np.where(lost, np.nan, values))
        layers.append(Layer(name=name, **means))
    return Layers(
        step=step,
        batches=len(measured),
        batch_size=int(sizes[0]),
        loss=_mean(np.array(losses)),
        layers=tuple(layers),
    )


def _mean(values: np.ndarray) -> float | None:
    mean = float(np.mean(values))
    return mean if np.isfinite(mean) else None


def _of_batch(
    parts: Sequence[nn.Module], variables: dict[str, Any], batch: Batch
) -> tuple[jax.Array, dict[str, dict[str, jax.Array]], int]:
    """The mean loss, the statistics of each layer, and B."""
    own = [{key: tree[p.name] for key, tree in variables.items() if p.name in tree} for p in parts]
    nameless = [part.clone(name=None) for part in parts]
    forward, backward = _compiled()
    xs = [batch.image]
    for part, of_part in zip(nameless, own, strict=True):
        xs.append(forward(part, of_part, xs[-1]))
    loss, dy = _loss_and_gradient(xs[-1], batch.label)
    found = []
    for part, of_part, x in zip(reversed(nameless), reversed(own), reversed(xs[:-1]), strict=True):
        dy, statistics = backward(part, of_part, x, dy)
        found.append(statistics)
    layers: dict[str, dict[str, jax.Array]] = {}
    for part, statistics in zip(parts, reversed(found), strict=True):
        for path, values in statistics.items():
            name = "/".join(filter(None, (part.name, path)))
            layers.setdefault(_of_norm(name), {}).update(values)
    return loss, layers, len(batch.label)


def _of_norm(name: str) -> str:
    """The name of the convolution before a norm: block/bn1 -> block/conv1, bn -> conv.

    Other names stay unchanged.
    """
    block, slash, last = name.rpartition("/")
    return block + slash + last.replace("bn", "conv")


@functools.cache
def _compiled() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """`_forward` and `_backward`, compiled."""
    options = cpu.quick_compilation()
    compiled = functools.partial(jax.jit, static_argnums=0, compiler_options=options)
    return compiled(_forward), compiled(_backward)


def _forward(part: nn.Module, variables: dict[str, Any], x: jax.Array) -> jax.Array:
    return _seen(part, variables, x, {})[0]


@jax.jit
def _loss_and_gradient(logits: jax.Array, label: jax.Array) -> tuple[jax.Array, jax.Array]:
    def loss(logits: jax.Array) -> jax.Array:
        return metrics.cross_entropy(logits, label).mean()

    return jax.value_and_grad(loss)(logits)


def _backward(
    part: nn.Module, variables: dict[str, Any], x: jax.Array, dy: jax.Array
) -> tuple[jax.Array, dict[str, dict[str, jax.Array]]]:
    """dL/dx of a part from dL/dy, and the statistics of its layers and norms."""
    seen = _seen(part, variables, x, {})[1]

    def output(params: Any, x: jax.Array, probes: dict[str, jax.Array]) -> jax.Array:
        return _seen(part, {**variables, "params": params}, x, probes)[0]

    # A probe is a zero added to the input of one layer. Its gradient is the part of the input's
    # gradient that passes through that layer.
    probes = jax.tree.map(jnp.zeros_like, seen.inputs)
    params = variables.get("params", {})
    dparams, dx, through = jax.vjp(output, params, x, probes)[1](dy)
    statistics: dict[str, dict[str, jax.Array]] = {}
    for path, read in seen.inputs.items():
        of_layer = dparams[path] if path else dparams
        of_kernel = _norm_and_rms("weight_gradient", of_layer["kernel"])
        # The shortcut reads the input of the block, too.
        of_input = _norm_and_rms("input_gradient", dx if read is x else through[path])
        statistics[path] = of_kernel | of_input
    for path, response in seen.responses.items():
        statistics[path] = {"response_std": jnp.std(response.astype(jnp.float32))}
    if isinstance(part, blocks.Block):
        by_f = _norm(through["conv1"])
        by_h = _norm(dx - through["conv1"])
        statistics["conv1"]["identity_share"] = by_h / (by_h + by_f)
    return dx, statistics


def _seen(
    part: nn.Module, variables: dict[str, Any], x: jax.Array, probes: dict[str, jax.Array]
) -> tuple[jax.Array, Seen]:
    """The output of a part and the values inside it. `probes` are added to its layers' inputs."""
    seen = Seen({}, {})

    def look(
        call: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        context: nn.module.InterceptorContext,
    ) -> Any:
        if context.method_name != "__call__":
            return call(*args, **kwargs)
        path = "/".join(context.module.path)
        if isinstance(context.module, WEIGHTED):
            seen.inputs[path] = args[0]
            args = (args[0] + probes[path], *args[1:]) if probes else args
        y = call(*args, **kwargs)
        if isinstance(context.module, NORMS):
            seen.responses[path] = y
        return y

    with nn.intercept_methods(look):
        y, _ = part.apply(variables, x, mutable=["batch_stats"])
    return y, seen


def _norm(x: jax.Array) -> jax.Array:
    """The L2 norm, also if squares are too small or too large for float32."""
    x = x.astype(jnp.float32)
    scale = jnp.maximum(jnp.max(jnp.abs(x)), jnp.finfo(jnp.float32).tiny)
    return scale * jnp.linalg.norm(x / scale)


def _norm_and_rms(name: str, x: jax.Array) -> dict[str, jax.Array]:
    norm = _norm(x)
    return {f"{name}_norm": norm, f"{name}_rms": norm / x.size**0.5}
