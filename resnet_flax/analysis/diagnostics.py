"""Gradient flow and layer responses, which show why a network does or does not train.

Source: Sec. 4.1 and Fig. 7. All functions run in train mode, with the BN statistics of the batch,
on one device.

B: batch; K: classes.
"""

import functools
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from resnet_flax.errors import UserError
from resnet_flax.models import blocks
from resnet_flax.storage.findings import Layer, Layers
from resnet_flax.training import part_by_part
from resnet_flax.training.steps import Batch

WEIGHTED = (nn.Conv, nn.Dense)
NORMS = (
    nn.BatchNorm, nn.GroupNorm, nn.InstanceNorm, nn.LayerNorm, nn.RMSNorm, blocks.Identity
)  # fmt: skip
FORWARD = ("weight_norm", "response_std")  # What needs no gradient.


class Seen(NamedTuple):
    """Values inside one part of a network, by the names of its layers."""

    inputs: dict[str, jax.Array]  # The input of each weighted layer.
    responses: dict[str, jax.Array]  # The output of each convolution, after the norm that reads it.
    branches: list[jax.Array]  # F(x) of a block.


def layer_statistics(
    parts: Sequence[nn.Module],
    variables: dict[str, Any],
    batches: Iterable[Batch],
    step: int = 0,
) -> Layers:
    """Gradient flow and responses of every weighted layer, as means over batches.

    `parts` and `variables` are as in `part_by_part.py`.
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
            means[key] = _mean(values if key in FORWARD else np.where(lost, np.nan, values))
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
    loss, found = part_by_part.look_back(parts, variables, batch, _backward)
    layers: dict[str, dict[str, jax.Array]] = {}
    for before, part, statistics in zip((None, *parts[:-1]), parts, found, strict=True):
        if isinstance(part, NORMS):
            if not isinstance(before, nn.Conv):
                continue  # It normalises a sum, which is the response of no single layer.
            part = before
        for path, values in statistics.items():
            name = "/".join(filter(None, (part.name, path)))
            layers.setdefault(name, {}).update(values)
    return loss, layers, len(batch.label)


def _backward(
    part: nn.Module, variables: dict[str, Any], x: jax.Array, dy: jax.Array
) -> tuple[jax.Array, dict[str, dict[str, jax.Array]]]:
    """dL/dx of a part from dL/dy, and the statistics of its layers and norms."""
    seen = _seen(part, variables, x)[1]

    def output(params: Any, x: jax.Array, probes: dict[str, jax.Array]) -> jax.Array:
        return _seen(part, {**variables, "params": params}, x, probes)[0]

    # A probe is a zero added to the input of one layer. Its gradient is the part of the input's
    # gradient that passes through that layer.
    probes = jax.tree.map(jnp.zeros_like, seen.inputs)
    params = variables.get("params", {})
    dparams, dx, through = jax.vjp(output, params, x, probes)[1](dy)
    statistics: dict[str, dict[str, jax.Array]] = {}
    for path, read in seen.inputs.items():
        kernel, gradient = (_at(tree, path)["kernel"] for tree in (params, dparams))
        of_kernel = _norm_and_rms("weight_gradient", gradient)
        of_kernel["weight_norm"] = part_by_part.norm(kernel)
        # Several layers may read the same values. The shortcut may read the input of the block.
        readers = [through[other] for other, theirs in seen.inputs.items() if theirs is read]
        of_input = _norm_and_rms("input_gradient", dx if read is x else sum(readers))
        statistics[path] = of_kernel | of_input
    for path, response in seen.responses.items():
        if path in seen.inputs or isinstance(part, NORMS):
            std = jnp.std(response.astype(jnp.float32))
            statistics.setdefault(path, {})["response_std"] = std
    if isinstance(part, blocks.Block):
        if not seen.branches:
            raise UserError(
                f"Expected {type(part).__name__} to compute F of Eqn. (1) in its method residual,"
                " got no call of it. Call it, so that F and h can be told apart."
            )
        first = next(iter(seen.inputs))
        statistics[first]["identity_share"] = _identity_share(part, variables, x, dx, dy)
    return dx, statistics


def _identity_share(
    part: nn.Module, variables: dict[str, Any], x: jax.Array, dx: jax.Array, dy: jax.Array
) -> jax.Array:
    """|h| / (|h| + |F|), with the parts of dL/dx that pass through h and through F of a block."""
    _, backward = jax.vjp(lambda x: _seen(part, variables, x, f_is_constant=True)[0], x)
    (of_h,) = backward(dy)
    by_h, by_f = part_by_part.norm(of_h), part_by_part.norm(dx - of_h)
    return by_h / (by_h + by_f)


def _seen(
    part: nn.Module,
    variables: dict[str, Any],
    x: jax.Array,
    probes: dict[str, jax.Array] | None = None,
    f_is_constant: bool = False,
) -> tuple[jax.Array, Seen]:
    """The output of a part and the values inside it.

    - `probes`: added to the inputs of its layers.
    - `f_is_constant`: whether no gradient passes through F of a block.
    """
    seen = Seen({}, {}, [])

    def look(
        call: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        context: nn.module.InterceptorContext,
    ) -> Any:
        if context.method_name == "residual":
            f = call(*args, **kwargs)
            seen.branches.append(f)
            return jax.lax.stop_gradient(f) if f_is_constant else f
        if context.method_name != "__call__":
            return call(*args, **kwargs)
        path = "/".join(context.module.path)
        if isinstance(context.module, WEIGHTED):
            seen.inputs[path] = args[0]
            args = (args[0] + probes[path], *args[1:]) if probes else args
        y = call(*args, **kwargs)
        if isinstance(context.module, nn.Conv):
            seen.responses[path] = y
        if isinstance(context.module, NORMS):
            read = (layer for layer, output in seen.responses.items() if output is args[0])
            seen.responses[next(read, path)] = y
        return y

    with nn.intercept_methods(look):
        y, _ = part.apply(variables, x, mutable=["batch_stats"])
    return y, seen


def _at(tree: Any, path: str) -> Any:
    """A part of a nested dict, at a path such as `gate/conv`. All of it if the path is empty."""
    return functools.reduce(operator.getitem, filter(None, path.split("/")), tree)


def _norm_and_rms(name: str, x: jax.Array) -> dict[str, jax.Array]:
    norm = part_by_part.norm(x)
    return {f"{name}_norm": norm, f"{name}_rms": norm / x.size**0.5}
