"""The training loss on the line from the initial to the last weights, and around the last weights.

Networks run in train mode, so with the BN statistics of each batch, on one device.

B, H, W, C: batch, height, width, channels; N: batches; P: points; D: directions.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from resnet_flax.models import stacking
from resnet_flax.storage.findings import Line, Plane
from resnet_flax.training import metrics
from resnet_flax.training.steps import Batch

# Yields the items of an iterable again, and may show progress.
Shown = Callable[[Iterable[np.ndarray]], Iterable[np.ndarray]]


def line(
    model: nn.Module,
    first: dict[str, Any],
    last: dict[str, Any],
    batches: Batch,
    positions: np.ndarray,
    *,
    step: int,
    shown: Shown = iter,
) -> Line:
    """The loss at `first + position * (last - first)` for each position.

    Source: Goodfellow et al. (2015), arXiv 1412.6544.

    - `first`, `last`: variables of the network. `last` are those of `step`.
    - `batches`: `image` [N, B, H, W, C], `label` [N, B].
    - `positions`: [P] float.
    """
    first, last = stacking.unstack((first, last))
    way = jax.tree.map(np.subtract, last["params"], first["params"])
    rows = positions.astype(np.float32)[:, None, None]
    losses, errors = _scores(model, first, [way], rows, batches, shown)
    return Line(
        step=step,
        images=batches.label.size,
        positions=tuple(positions.tolist()),
        losses=tuple(row[0] for row in losses),
        errors=tuple(row[0] for row in errors),
    )


def plane(
    model: nn.Module,
    variables: dict[str, Any],
    batches: Batch,
    positions: np.ndarray,
    *,
    step: int,
    seed: int,
    shown: Shown = iter,
) -> Plane:
    """The loss at `variables` moved by all pairs of `positions` along two random directions.

    The directions are `filter_normalized_direction` of `seed` and `seed + 1`, so planes of
    successive seeds share a direction's random numbers. The other arguments are as in `line`.
    """
    variables = stacking.unstack(variables)
    params = variables["params"]
    seeds = seed, (seed + 1) % 2**32
    directions = [filter_normalized_direction(each, params) for each in seeds]
    rows = np.stack(np.meshgrid(positions, positions, indexing="ij"), axis=-1).astype(np.float32)
    losses, errors = _scores(model, variables, directions, rows, batches, shown)
    return Plane(
        step=step,
        images=batches.label.size,
        seed=seed,
        positions=tuple(positions.tolist()),
        losses=losses,
        errors=errors,
    )


def filter_normalized_direction(seed: int, params: Any) -> Any:
    """A random direction in which each filter has the same norm as in `params`.

    Source: Li et al. (2018), arXiv 1712.09913, Sec. 4. The direction is Gaussian. Then
    d <- d |w| / |d| for each output channel of each kernel. It is zero for biases and BN.

    - `params`: of a network whose blocks are not stacked.
    """
    leaves, treedef = jax.tree.flatten(params)
    random = np.random.RandomState(seed)

    def direction(w: np.ndarray) -> np.ndarray:
        if w.ndim < 2:
            return np.zeros_like(w)
        d = random.standard_normal(w.shape).astype(w.dtype)
        return d * _filter_lengths(w) / _filter_lengths(d)

    return jax.tree.unflatten(treedef, [direction(np.asarray(leaf)) for leaf in leaves])


def _filter_lengths(w: np.ndarray) -> np.ndarray:
    """The L2 norm of each filter: [..., O] -> [1, ..., 1, O]."""
    return np.sqrt(np.sum(np.square(w), axis=tuple(range(w.ndim - 1)), keepdims=True))


Rows = tuple[tuple[float | None, ...], ...]


def _scores(
    model: nn.Module,
    origin: dict[str, Any],
    directions: Sequence[Any],
    rows: np.ndarray,
    batches: Batch,
    shown: Shown,
) -> tuple[Rows, Rows]:
    """Losses and errors at points, given in rows [R, P, D]. A loss that is not finite is None."""
    if getattr(model, "scan", False):
        origin, directions = stacking.stack((origin, list(directions)))
    losses, errors = [], []
    for row in shown(rows):
        totals = jax.device_get(_totals_along(model, origin, directions, row, batches))
        means = totals.loss.astype(float) / totals.images
        losses.append(tuple(loss if np.isfinite(loss) else None for loss in means.tolist()))
        errors.append(tuple((totals.errors / totals.images).tolist()))
    return tuple(losses), tuple(errors)


@functools.partial(jax.jit, static_argnums=0)
def _totals_along(
    model: nn.Module,
    origin: dict[str, Any],
    directions: Sequence[Any],
    points: jax.Array,
    batches: Batch,
) -> metrics.Totals:
    """Totals [P] over all batches at points [P, D]. A point has a coordinate for each direction."""

    def at(point: jax.Array) -> metrics.Totals:
        def moved(w: jax.Array, *ds: jax.Array) -> jax.Array:
            return w + sum(point[i] * d for i, d in enumerate(ds))

        params = jax.tree.map(moved, origin["params"], *directions)

        def add_batch(sums: metrics.Totals, batch: Batch) -> tuple[metrics.Totals, None]:
            logits, _ = model.apply(
                {**origin, "params": params}, batch.image, train=True, mutable=["batch_stats"]
            )
            totals = metrics.totals(logits, batch.label, jnp.ones_like(batch.label, bool))
            return jax.tree.map(jnp.add, sums, totals), None

        return jax.lax.scan(add_batch, metrics.zeros(), batches)[0]

    return jax.lax.map(at, points)
