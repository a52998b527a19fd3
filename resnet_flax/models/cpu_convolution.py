"""A convolution that is fast on a CPU, forward and backward, also inside a loop over steps.

XLA's CPU convolution is fast in one layout only. Autodiff writes the weight gradient in another
layout, which is more than ten times slower inside a `lax.scan`. Here the weight gradient consists
of transposes and convolutions in the fast layout. On maps of at most 3 columns, shifted copies and
a matrix product are even faster. The convolution has reverse-mode derivatives only.

Time of a training step on 2 cores (32x32, batch 128, medians of 11):

    depth   this file   nn.Conv
    20      206 ms      425 ms
    56      559 ms      1881 ms

The suite `steps` of `experiments.benchmark` measures these; the results are in
experiments/results/benchmarks. A single convolution with stride 2 or on small maps can be slower
than with `nn.Conv`: the suite `convolution` measures that.

N, H, W, C: batch, height, width, input channels; O: output channels; k: kernel size; s: stride;
p: padding.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

LAYOUT = ("NHWC", "HWIO", "NHWC")
MATMUL_COLUMNS = 3
# With at most this many output channels, two columns are computed as twice as many channels.
PAIRED_CHANNELS = 16
# A weight gradient is a sum over parts of the batch, at most MAX_CHUNKS. A part of CHUNK_BYTES fits
# the cache of a core.
CHUNK_BYTES = 2**19
MAX_CHUNKS = 8


def conv_general_dilated(
    x: jax.Array,
    kernel: jax.Array,
    window_strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    *,
    lhs_dilation: Sequence[int],
    rhs_dilation: Sequence[int],
    feature_group_count: int,
    **rest: Any,
) -> jax.Array:
    """Replaces `lax.conv_general_dilated` in `nn.Conv` (its field of this name).

    `x` [N, H, W, C], `kernel` [k, k, C, O] -> [N, (H+2p-k)//s+1, (W+2p-k)//s+1, O].

    XLA's own convolution takes what has dilation or groups, and strides, paddings or kernel sizes
    that differ between the sides.
    """
    (stride, *strides), (pad, *pads) = window_strides, [p for side in padding for p in side]
    dilated = {*lhs_dilation, *rhs_dilation, feature_group_count} != {1}
    if dilated or {*strides} != {stride} or {*pads} != {pad} or len({*kernel.shape[:2]}) != 1:
        return lax.conv_general_dilated(
            x,
            kernel,
            window_strides,
            padding,
            lhs_dilation=lhs_dilation,
            rhs_dilation=rhs_dilation,
            feature_group_count=feature_group_count,
            **rest,
        )
    if x.shape[2] <= MATMUL_COLUMNS:
        return _matmul_conv(x, kernel, stride, pad)
    if stride > 1:
        x, kernel = _space_to_depth(x, kernel, stride, pad)
        pad = 0
    return _conv(x, kernel, pad)


def _matmul_conv(x: jax.Array, kernel: jax.Array, stride: int, pad: int) -> jax.Array:
    """Computes im2col: k*k shifted maps side by side, times the kernel as a [k*k*C, O] matrix."""
    k = kernel.shape[0]
    x = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    height, width = x.shape[1] - k + 1, x.shape[2] - k + 1
    shifted = [
        x[:, i : i + height : stride, j : j + width : stride] for i in range(k) for j in range(k)
    ]
    return jnp.concatenate(shifted, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])


def _space_to_depth(
    x: jax.Array, kernel: jax.Array, stride: int, pad: int
) -> tuple[jax.Array, jax.Array]:
    """An `x` and a `kernel` that give the same result with stride 1 and no padding.

    Each square of s*s pixels becomes one pixel with s*s*C channels: x [N, H', W', s*s*C], kernel
    [ceil(k/s), ceil(k/s), s*s*C, O].
    """
    (n, height, width, channels), (k, _, _, features) = x.shape, kernel.shape
    taps = -(-k // stride)
    rows, columns = ((side + 2 * pad - k) // stride + taps for side in (height, width))
    after = (rows * stride - height - pad, columns * stride - width - pad)
    zero = jnp.zeros((), x.dtype)
    x = lax.pad(x, zero, ((0, 0, 0), (pad, after[0], 0), (pad, after[1], 0), (0, 0, 0)))
    x = x.reshape(n, rows, stride, columns, stride, channels).swapaxes(2, 3)
    spare = (0, taps * stride - k)
    kernel = jnp.pad(kernel, (spare, spare, (0, 0), (0, 0)))
    kernel = kernel.reshape(taps, stride, taps, stride, channels, features).swapaxes(1, 2)
    channels *= stride**2
    return (
        x.reshape(n, rows, columns, channels),
        kernel.reshape(taps, taps, channels, features),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv(x: jax.Array, kernel: jax.Array, pad: int) -> jax.Array:
    # Barriers keep XLA from fusing the operations around a convolution into the transposes of its
    # operands. The flag of `cpu.py` keeps XLA from removing the barriers.
    return lax.optimization_barrier(_canonical(x, kernel, pad))


def _canonical(x: jax.Array, kernel: jax.Array, pad: int) -> jax.Array:
    """A convolution in the fast layout."""
    k, _, _, features = kernel.shape
    columns = x.shape[2] + 2 * pad - k + 1
    padding = ((pad, pad), (pad, pad))
    if k == 1 or columns % 2 or features > PAIRED_CHANNELS:
        return lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=LAYOUT)
    # Two copies of the kernel, one column apart, compute two neighbouring outputs at once.
    shifted = [jnp.pad(kernel, ((0, 0), (i, 1 - i), (0, 0), (0, 0))) for i in (0, 1)]
    pairs = lax.conv_general_dilated(
        x, jnp.concatenate(shifted, axis=-1), (1, 2), padding, dimension_numbers=LAYOUT
    )
    return pairs.reshape(*pairs.shape[:2], columns, features)


def _conv_fwd(
    x: jax.Array, kernel: jax.Array, pad: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _conv(x, kernel, pad), (x, kernel)


def _conv_bwd(
    pad: int, residuals: tuple[jax.Array, jax.Array], dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    x, dy = lax.optimization_barrier((x, dy))
    flipped = kernel[::-1, ::-1].swapaxes(2, 3)
    dx = _canonical(dy, flipped, len(kernel) - 1 - pad)
    return lax.optimization_barrier((dx, _kernel_gradient(x, dy, pad)))


@jax.named_scope("kernel_gradient")  # Profiles tell it from the input's gradient.
def _kernel_gradient(x: jax.Array, dy: jax.Array, pad: int) -> jax.Array:
    """dL/dkernel [k, k, C, O], as a convolution of x with dy.

    Channels act as the batch, images as the channels, and dy as the kernel.
    """
    chunks = 1
    while dy.nbytes > chunks * CHUNK_BYTES and chunks < MAX_CHUNKS and len(x) % (2 * chunks) == 0:
        chunks *= 2
    gradient = jnp.zeros((), jnp.promote_types(dy.dtype, jnp.float32))
    for part, dy_part in zip(jnp.split(x, chunks), jnp.split(dy, chunks), strict=True):
        gradient += lax.conv_general_dilated(
            part.transpose(3, 1, 2, 0),
            dy_part.transpose(1, 2, 0, 3),
            (1, 1),
            ((pad, pad), (pad, pad)),
            dimension_numbers=LAYOUT,
        )
    return gradient.astype(dy.dtype).transpose(1, 2, 0, 3)


_conv.defvjp(_conv_fwd, _conv_bwd)
