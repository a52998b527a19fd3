"""The fields that change a network for an experiment: each does what its name says, and no more."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from resnet_flax.errors import UserError
from resnet_flax.models import blocks
from resnet_flax.models.blocks import BasicBlock, zero_pad_shortcut
from resnet_flax.models.catalogue import build_resnet
from resnet_flax.models.resnet import part_of
from tests.models.test_blocks import PARTS, without_f

X = jax.random.normal(jax.random.key(0), (2, 6, 6, 4))


@pytest.mark.parametrize("shortcut", ["pad", "projection"])
def test_the_scale_multiplies_the_shortcut_alone(shortcut):
    scaled, whole = (BasicBlock(8, 2, shortcut, shortcut_scale=a, **PARTS) for a in (-0.5, 1.0))
    variables = without_f(whole.init(jax.random.key(1), X))
    h = (
        zero_pad_shortcut(X, 8, 2)
        if shortcut == "pad"
        else X[:, ::2, ::2] @ variables["params"]["shortcut_conv"]["kernel"][0, 0]
    )
    # 1e-5: BN's epsilon, and one product.
    np.testing.assert_allclose(scaled.apply(variables, X), nn.relu(-0.5 * h), atol=2e-5)


def test_a_leaky_relu_passes_a_share_of_what_is_below_zero():
    x = jnp.array([-2.0, 0.0, 3.0])
    np.testing.assert_allclose(blocks.ReLU(0.25).apply({}, x), [-0.5, 0, 3])
    net = build_resnet("cifar", 8, "none", (4, 4, 4), num_classes=3, negative_slope=0.25)
    seen = []

    def look(call, args, kwargs, context):
        y = call(*args, **kwargs)
        if isinstance(context.module, blocks.ReLU) and context.method_name == "__call__":
            seen.append((context.module.name, bool(jnp.any(y < 0))))
        return y

    with nn.intercept_methods(look):
        net.init_with_output(jax.random.key(0), X)
    assert len(seen) == 7 and all(below for _, below in seen)


def test_initial_values_of_bn_are_those_asked_for():
    net = build_resnet("cifar", 8, "pad", (4, 4, 4), num_classes=3, bn_bias=0.5)
    params = jax.eval_shape(net.init, jax.random.key(0), X)["params"]
    assert params["bn"]["bias"].shape == (4,)
    params = jax.jit(net.init)(jax.random.key(0), X)["params"]
    block = params["stage2_block1"]
    for norm in (params["bn"], block["bn1"], block["bn2"]):
        np.testing.assert_array_equal(norm["bias"], 0.5)
    net = net.clone(bn_bias=0.0, zero_init_residual=True)
    block = jax.jit(net.init)(jax.random.key(0), X)["params"]["stage2_block1"]
    np.testing.assert_array_equal(block["bn1"]["scale"], 1)
    np.testing.assert_array_equal(block["bn2"]["scale"], 0)


@pytest.mark.parametrize(
    ("shortcut", "fields", "said"),
    [
        ("none", {"shortcut_scale": 0.5}, "no shortcut to scale, got 0.5"),
        ("pad", {"bn_bias": 1.0, "norm": "none"}, "model.bn_bias=0"),
        ("none", {"zero_init_residual": True}, "shortcut='none'"),
        ("pad", {"zero_init_residual": True, "norm": "none"}, "norm='none'"),
        ("pad", {"zero_init_residual": True, "block": "preactivation"}, "block='preactivation'"),
    ],
)
def test_a_field_without_effect_is_refused(shortcut, fields, said):
    with pytest.raises(UserError, match=said):
        build_resnet("cifar", 8, shortcut, num_classes=3, **fields)


@pytest.mark.parametrize("block", ["postactivation", "preactivation"])
def test_every_module_belongs_to_a_part(block):
    net: Any = build_resnet("imagenet", 18, "projection", block=block, num_classes=3)
    parts = [part_of(part.name) for part in net.parts()]
    assert parts == sorted(
        parts, key=["stem", "stage1", "stage2", "stage3", "stage4", "head"].index
    )
    assert parts.count("stage4") == 2 and parts[0] == "stem" and parts[-2:] == ["head"] * 2
