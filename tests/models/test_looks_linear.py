"""Networks that begin as linear functions."""

import jax
import numpy as np
import pytest

from resnet_flax.errors import UserError
from resnet_flax.models import looks_linear
from resnet_flax.models.catalogue import build_resnet
from resnet_flax.training import part_by_part


def network(**fields):
    fields = {"num_classes": 3, "kernel_init": "looks_linear", **fields}
    return build_resnet("cifar", 14, "none", fields.pop("widths", (4, 4, 8)), **fields)


def images(seed):
    return jax.random.normal(jax.random.key(seed), (4, 8, 8, 3))


@pytest.mark.parametrize("block", ["postactivation", "preactivation"])
def test_without_bn_the_network_is_linear(block):
    net = network(norm="none", block=block)
    variables = jax.jit(net.init)(jax.random.key(0), images(0))
    apply = jax.jit(net.apply)
    x, y = images(1), images(2)
    # 1e-5: float32, 14 layers.
    expected = 2 * apply(variables, x) - 3 * apply(variables, y)
    np.testing.assert_allclose(apply(variables, 2 * x - 3 * y), expected, atol=1e-5)
    assert np.abs(expected).min() > 1e-4


def test_with_bn_channels_stay_in_pairs_of_opposite_sign():
    net = network(norm="batch")
    variables = jax.jit(net.init)(jax.random.key(0), images(0))
    parts = part_by_part.parts_of(net)
    for part, y in zip(parts, part_by_part.outputs(parts, variables, images(1)), strict=True):
        if not part.name.startswith(("bn", "stage")):
            continue
        one, other = np.split(np.asarray(y), 2, axis=-1)
        if part.name == "bn":
            np.testing.assert_allclose(one, -other, atol=1e-5)
        else:  # After ReLU, one of each pair is 0.
            np.testing.assert_array_equal(np.minimum(one, other) < 1e-5, True)
            assert np.maximum(one, other).mean() > 0.1


def test_a_layer_keeps_the_norm_of_what_its_pairs_mean():
    net = network(norm="none", widths=(4, 4, 4))
    kernel = jax.jit(net.init)(jax.random.key(0), images(0))["params"]["stage1_block1"]["conv1"][
        "kernel"
    ]
    assert not np.delete(np.asarray(kernel).reshape(9, 4, 4), 4, axis=0).any()
    q = kernel[1, 1, :2, :2]
    np.testing.assert_allclose(q @ q.T, np.eye(2), atol=1e-6)
    np.testing.assert_array_equal(kernel[1, 1], np.block([[q, -q], [-q, q]]))


@pytest.mark.parametrize("widths", [(5, 6, 8), (4, 5, 8), (8, 4, 8)])
def test_channels_that_cannot_be_pairs_are_refused(widths):
    with pytest.raises(UserError, match=r"even model\.widths that do not shrink"):
        network(widths=widths)


@pytest.mark.parametrize("channels", [(6, 5), (5, 6), (8, 4)])
def test_a_kernel_between_channels_that_cannot_be_pairs_is_refused(channels):
    with pytest.raises(UserError, match=r"even channels that do not shrink.*model\.widths"):
        looks_linear.inner(jax.random.key(0), (3, 3, *channels))


@pytest.mark.parametrize(
    "fields",
    [{"negative_slope": 0.5}, {"bn_bias": 1.0}, {"shortcut": "pad"}, {"family": "imagenet"}],
)
def test_networks_that_cannot_be_linear_are_refused(fields):
    family, shortcut = fields.pop("family", "cifar"), fields.pop("shortcut", "none")
    depth = 14 if family == "cifar" else 18
    with pytest.raises(UserError, match=r'model\.init="he", or'):
        build_resnet(family, depth, shortcut, num_classes=3, kernel_init="looks_linear", **fields)
