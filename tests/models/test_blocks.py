from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from resnet_flax.models import blocks
from resnet_flax.models.blocks import BasicBlock, BottleneckBlock, zero_pad_shortcut

PARTS = {
    "conv": partial(blocks.conv, use_bias=False),
    "norm": partial(nn.BatchNorm, use_running_average=True),
}


def without_f(variables):
    """The last BN's scale at zero: F(x) = 0, so that y = relu(h(x))."""
    last = max(name for name in variables["params"] if name.startswith("bn"))
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: 0 * leaf if path[1].key == last and path[2].key == "scale" else leaf,
        variables,
    )


@pytest.mark.parametrize("block", [BasicBlock, BottleneckBlock])
def test_equation_1_adds_the_input_to_f(block):
    x = jax.random.normal(jax.random.key(0), (2, 6, 6, 8))
    residual = block(8 // block.expansion, 1, "pad", **PARTS)
    variables = residual.init(jax.random.key(1), x)
    np.testing.assert_array_equal(residual.apply(without_f(variables), x), nn.relu(x))


@pytest.mark.parametrize("block", [BasicBlock, BottleneckBlock])
def test_the_plain_block_is_f_alone(block):
    x = jax.random.normal(jax.random.key(0), (2, 6, 6, 8))
    plain = block(8 // block.expansion, 1, "none", **PARTS)
    variables = plain.init(jax.random.key(1), x)
    assert np.any(plain.apply(variables, x))
    np.testing.assert_array_equal(plain.apply(without_f(variables), x), 0)


def test_the_projection_is_a_1x1_convolution_of_the_strided_input():
    x = jax.random.normal(jax.random.key(0), (2, 6, 6, 4))
    block = BasicBlock(8, 2, "projection", **PARTS)
    variables = block.init(jax.random.key(1), x)
    kernel = variables["params"]["shortcut_conv"]["kernel"][0, 0]
    expected = nn.relu(x[:, ::2, ::2] @ kernel / jnp.sqrt(1 + 1e-5))
    # 1e-5: one float32 product of 4 terms.
    np.testing.assert_allclose(block.apply(without_f(variables), x), expected, atol=1e-5)


@pytest.mark.parametrize("size", [7, 8])
def test_option_a_takes_every_second_pixel_and_pads_channels_with_zeros(size):
    x = jax.random.normal(jax.random.key(0), (2, size, size, 3))
    y = zero_pad_shortcut(x, features=5, stride=2)
    np.testing.assert_array_equal(y[..., :3], x[:, ::2, ::2])
    np.testing.assert_array_equal(y[..., 3:], 0)


def test_option_a_cannot_drop_channels():
    with pytest.raises(ValueError, match="Cannot drop channels"):
        zero_pad_shortcut(jnp.zeros((1, 2, 2, 4)), features=3, stride=1)


def test_the_stride_of_a_bottleneck_stands_where_it_is_asked_for():
    for stride_at, middle in (("1x1", 4), ("3x3", 8)):
        block = BottleneckBlock(2, 2, "projection", stride_at=stride_at, **PARTS)
        x = jnp.zeros((1, 8, 8, 4))
        _, captured = block.init_with_output(
            jax.random.key(0), x, capture_intermediates=True, mutable=True
        )
        assert captured["intermediates"]["conv1"]["__call__"][0].shape[1] == middle
        assert captured["intermediates"]["__call__"][0].shape == (1, 4, 4, 8)


def test_a_strided_convolution_pads_one_pixel_on_all_sides():
    image = jnp.zeros((1, 8, 8, 1)).at[0, 7, 7, 0].set(1.0)
    conv = blocks.conv(1, 3, 2, use_bias=False)
    out: Any = conv.apply({"params": {"kernel": jnp.ones((3, 3, 1, 1))}}, image)
    # Output (i, j) sees rows 2i-1 to 2i+1: the last pixel is under (3, 3) alone. XLA's "SAME" would
    # pad at the end only and give the same; the first pixel tells them apart.
    assert out[0, 3, 3, 0] == 1
    first = jnp.zeros((1, 8, 8, 1)).at[0, 1, 1, 0].set(1.0)
    out = conv.apply({"params": {"kernel": jnp.ones((3, 3, 1, 1))}}, first)
    np.testing.assert_array_equal(out[0, :2, :2, 0], 1)
