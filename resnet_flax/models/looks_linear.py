"""Initial values with which a plain network with ReLU computes a linear function.

Source: "looks linear" (Balduzzi et al. 2017, arXiv 1702.08591, Sec. 5) with the delta-orthogonal
kernels of Xiao et al. (2018), arXiv 1806.05393. Half of the channels are the other half with the
opposite sign. After ReLU such a pair is max(z, 0) and max(-z, 0), and its difference is z. A kernel
that reads differences and makes pairs passes z on. Between pairs it is an orthogonal matrix in the
middle of the kernel, and zero elsewhere. BN does not break pairs while its bias is 0.

With I and O channels and orthonormal Q:

    first [I, O]: (Q, -Q)      inner [I, O]: (Q, -Q; -Q, Q)      last [I, O]: (Q; -Q)

The first layer is orthogonal over its whole window: an image has few channels. If the kernel used
only its centre, many outputs of BN would be copies.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from resnet_flax.errors import UserError


def _kernel(
    key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32, *, reads: bool, makes: bool
) -> jax.Array:
    """A kernel [..., I, O] that reads pairs, makes pairs, or both.

    Raises UserError if an orthogonal map between the halves does not exist.
    """
    *window, given, made = shape
    inputs, outputs = given // 2, made // (1 + makes)
    are_pairs = not (reads and given % 2) and not (makes and made % 2)
    if not are_pairs or (reads and makes and inputs > outputs):
        raise UserError(
            'Expected even channels that do not shrink with model.init="looks_linear", got a layer'
            f" from {given} to {made} channels; give other model.widths."
        )
    if not reads:
        pixels = math.prod(window) * given
        q = nn.initializers.orthogonal()(key, (pixels, outputs), dtype)
        return jnp.concatenate([q, -q], axis=1).reshape(shape)
    q = nn.initializers.orthogonal()(key, (inputs, outputs), dtype)
    if makes:
        q = jnp.concatenate([q, -q], axis=1)
    middle = tuple(size // 2 for size in window)
    return jnp.zeros(shape, dtype).at[middle].set(jnp.concatenate([q, -q], axis=0))


first = partial(_kernel, reads=False, makes=True)
inner = partial(_kernel, reads=True, makes=True)
last = partial(_kernel, reads=True, makes=False)
