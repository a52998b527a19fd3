"""Mean-field theory of gradients in plain and residual networks with BN, before training.

Layers of infinite width, batches of infinite size, Gaussian kernels. Yang et al. (2019), arXiv
1902.08129, treat fully connected plain networks: there BN makes gradients explode. This file adds
convolutions and shortcuts.

**Forward.** BN makes each channel z of its output Gaussian over the batch, with mean b (BN's bias)
and variance 1. Let phi be the activation. A block computes

    x' = phi(s),    s = f + a h(x),    f ~ N(b, 1)

where f = F(x) and a is `shortcut_scale`. The kernels of F are random, so f and x are independent.
The density of x' follows from that of x by one convolution with a Gaussian.

**Backward.** A kernel with fan-in n and entries of variance 2/n gives its output the variance
2 Var[x], and a gradient that passes back through it twice its squared norm, summed over channels
and places. BN divides by its input's standard deviation. So conv-BN multiplies the squared norm by
2 / (2 Var[x]) = 1 / Var[x], and the activation by E[phi'(z)^2]. F has two convolutions, and its
inner layer reads phi(z) with z ~ N(b, 1). So F multiplies the squared norm by r / Var[x], where

    r = E[phi'(z)^2] / Var[phi(z)]

The gradient of f spreads evenly over all entries of x. That of h stays in its entry, and a unit
that is on (s > 0) is likely to be on again in the next block. So the gradient of an entry depends
on its value. Let v(s) be the mean of the squared gradient of x = phi(s) at an entry, and N the
number of entries. With s' and v' of the next block, s' = f + a phi(s):

    v(s) = a^2 E_f[phi'(s')^2 v'(s')] + r / Var[x] |dL/ds'|^2 / N
    |dL/ds'|^2 = N E[phi'(s')^2 v'(s')]

The two parts add, without a mixed one, because the kernels of F have mean 0. In a plain network a
is 0 and s = f, so each layer multiplies the squared norm by r: pi / (pi - 1) = 1.467 for ReLU.

**Where a stage begins**, option A pads with zeros: new channels have s = f. So channels differ by
the stage in which they began, and v and the density of s are those of such a group of channels.
BN's own gradient terms, which take away the mean and the part along z, are small for large batches
and left out.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from flax import linen as nn

from resnet_flax.models.blocks import BasicBlock
from resnet_flax.models.resnet import ResNet

_STEP = 0.02
_GRID = np.arange(-2_500, 7_501) * _STEP  # Values of s: -50 to 150, with a 0.
_LOST = 1e-3  # The probability that may lie beyond the grid.
_BIASES = -5, 75  # Below, hardly any unit is on. Above, s may lie beyond the grid.


class Moments(NamedTuple):
    """Of x = phi(s) in one group of channels."""

    variance: float
    slope_square: float  # E[phi'(s)^2].


class Group(NamedTuple):
    """Channels that began in the same stage."""

    channels: int
    density: np.ndarray  # The probability of each value of `_GRID`, for s.


def layer_growth(negative_slope: float = 0.0, bn_bias: float = 0.0) -> float:
    """r: the factor by which a layer conv-BN-phi of a plain network multiplies |dL/dx|^2.

    NaN unless `bn_bias` is between -5 and 75.
    """
    moments = _moments(_gaussian(bn_bias), negative_slope)
    return moments.slope_square / moments.variance


def gradient_ratio(
    blocks_per_stage: Sequence[int],
    widths: Sequence[int],
    shortcut_scale: float = 1.0,
    negative_slope: float = 0.0,
    bn_bias: float = 0.0,
) -> float:
    """|dL/dx| at the input of the first block over that at the output of the last block.

    Blocks are basic and post-activation, shortcuts are option A. `shortcut_scale` 0 is a plain
    network. NaN if values of s grow beyond 150, as with a large `shortcut_scale` or BN bias, or if
    `layer_growth` is NaN.
    """
    f, r = _gaussian(bn_bias), layer_growth(negative_slope, bn_bias)
    if np.isnan(r):
        return r
    groups = [Group(widths[0], f)]  # What the first block reads.
    passed = []
    for width, count in zip(widths, blocks_per_stage, strict=True):
        for _ in range(count):
            x = groups
            groups = [
                Group(g.channels, _next(g.density, shortcut_scale, negative_slope, f)) for g in x
            ]
            if new := width - sum(g.channels for g in x):
                groups.append(Group(new, f))
            passed.append((x, groups))
    if min(g.density.sum() for g in groups) < 1 - _LOST:
        return float("nan")
    slope = _slope_square(negative_slope)
    squares = [np.full(len(_GRID), 1 / width) for _ in groups]  # v; the loss reads all alike.
    for x, y in reversed(passed):
        of_s = [slope * v for v in squares]
        through_f = r / _variance(x, negative_slope) * _total(y, of_s) / sum(g.channels for g in x)
        through_h = (_expected_next(v, shortcut_scale, negative_slope, f) for v in of_s[: len(x)])
        squares = [shortcut_scale**2 * v + through_f for v in through_h]
    return float(np.sqrt(_total(passed[0][0], squares)))


def predicted_ratio(model: nn.Module) -> float | None:
    """`gradient_ratio` of a network. None if the theory does not cover it, or if it is NaN."""
    covered = (
        isinstance(model, ResNet)
        and (model.stem, model.block, model.norm) == ("cifar", BasicBlock, "batch")
        and (model.kernel_init, model.zero_init_residual) == ("he", False)
        and model.shortcut in ("none", "pad")
        and list(model.widths) == sorted(model.widths)
    )
    if not covered:
        return None
    scale = 0.0 if model.shortcut == "none" else model.shortcut_scale
    slopes = model.negative_slope, model.bn_bias
    ratio = gradient_ratio(model.blocks_per_stage, model.widths, scale, *slopes)
    return ratio if np.isfinite(ratio) else None


def _total(groups: Sequence[Group], values: Sequence[np.ndarray]) -> float:
    """The sum over all channels of the mean of a function of s. `values`: of each group."""
    pairs = zip(groups, values, strict=True)
    return float(sum(g.channels * (g.density @ of_group) for g, of_group in pairs))


def _variance(groups: Sequence[Group], negative_slope: float) -> float:
    """The mean over all channels of Var[x]."""
    variances = [_moments(g.density, negative_slope).variance for g in groups]
    return float(np.average(variances, weights=[g.channels for g in groups]))


def _gaussian(mean: float) -> np.ndarray:
    if not _BIASES[0] <= mean <= _BIASES[1]:
        return np.full(len(_GRID), np.nan)
    density = np.exp(-((_GRID - mean) ** 2) / 2)
    return density / density.sum()


def _activated(negative_slope: float) -> np.ndarray:
    return np.where(_GRID > 0, _GRID, negative_slope * _GRID)


def _moments(density: np.ndarray, negative_slope: float) -> Moments:
    x = _activated(negative_slope)
    mean = density @ x
    return Moments(float(density @ (x - mean) ** 2), float(density @ _slope_square(negative_slope)))


def _slope_square(negative_slope: float) -> np.ndarray:
    """phi'(s)^2."""
    slope = np.where(_GRID > 0, 1.0, negative_slope**2)
    slope[_GRID == 0] = (1 + negative_slope**2) / 2
    return slope


def _next(s: np.ndarray, scale: float, negative_slope: float, f: np.ndarray) -> np.ndarray:
    """The density of f + scale phi(s), without what lies beyond the grid."""
    h = scale * _activated(negative_slope)
    inside = (h >= _GRID[0]) & (h <= _GRID[-1])
    h, s = h[inside], s[inside]
    # Each value is shared by its two neighbours on the grid, which keeps the mean.
    below = np.floor((h - _GRID[0]) / _STEP).astype(int)
    above = (h - _GRID[below]) / _STEP
    of_h = np.bincount(below, s * (1 - above), len(_GRID))
    of_h += np.bincount(np.minimum(below + 1, len(_GRID) - 1), s * above, len(_GRID))
    seen, zero = _seen(f)
    return np.convolve(of_h, f[seen])[zero : zero + len(_GRID)]


def _expected_next(
    values: np.ndarray, scale: float, negative_slope: float, f: np.ndarray
) -> np.ndarray:
    """For each s, the mean over f of a function of f + scale phi(s)."""
    seen, zero = _seen(f)
    length = seen.stop - seen.start
    # The mean over f of values(f + h), for each h of the grid.
    means = np.convolve(np.pad(values, length, mode="edge"), f[seen][::-1])
    means = means[2 * length - 1 - zero :][: len(_GRID)]
    return np.interp(scale * _activated(negative_slope), _GRID, means)


def _seen(f: np.ndarray) -> tuple[slice, int]:
    """The values that count: those above rounding, and all up to 0. Also the place of 0 in them."""
    zero = int(np.flatnonzero(_GRID == 0)[0])
    first, *_, last = sorted({zero, *np.flatnonzero(f > 1e-16)[[0, -1]]})
    return slice(first, last + 1), zero - first
