from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from configs import digits
from resnet_flax.config import ModelConfig, RunConfig, parse
from resnet_flax.errors import UserError
from resnet_flax.models import blocks, cost
from resnet_flax.models.blocks import (
    BLOCKS,
    CONTRACT,
    BasicBlock,
    Block,
    BottleneckBlock,
    zero_pad_shortcut,
)
from resnet_flax.models.catalogue import build_resnet
from resnet_flax.training import architecture

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


class Gate(nn.Module):
    """A kind of module that no other block has."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return x * nn.sigmoid(nn.Dense(x.shape[-1], name="scale")(x.mean((1, 2), keepdims=True)))


class GatedBlock(BasicBlock):
    """As Hu et al. (2018), arXiv 1709.01507: F with a gate for each channel."""

    def residual(self, x: jax.Array) -> jax.Array:
        return Gate(name="gate")(super().residual(x))


def model_config(**fields) -> ModelConfig:
    config = digits.get_config("resnet8").to_dict()
    config["model"] |= fields
    return parse(config, RunConfig).model


def test_a_class_and_its_name_are_all_that_a_new_block_needs(monkeypatch):
    monkeypatch.setitem(BLOCKS, "gated", {"basic": GatedBlock})
    model = architecture.build_model(model_config(block="gated", widths=(4, 4, 8)), num_classes=3)
    parts = {part.name: part for part in cost.layer_table(model, (8, 8, 1))}
    plain = architecture.build_model(model_config(widths=(4, 4, 8)), num_classes=3)
    gates = 2 * (4 * 4 + 4) + 8 * 8 + 8
    assert parts["stage3_block1/gate"].kind == "Gate"
    assert parts["stage3_block1/gate/scale"].multiply_adds == 8 * 8
    parameters, multiply_adds = cost.totals(cost.layer_table(plain, (8, 8, 1)))
    counted = cost.totals(list(parts.values()))
    assert counted == (parameters + gates, multiply_adds + 2 * 4 * 4 + 8 * 8)


def test_an_unknown_block_is_one_line_that_lists_the_known_ones(monkeypatch):
    monkeypatch.setitem(BLOCKS, "gated", {"basic": GatedBlock})
    with pytest.raises(UserError, match="config.model.block: .*, 'gated'.*, got 'foo'") as error:
        model_config(block="foo")
    assert "\n" not in str(error.value)


def test_a_depth_whose_form_a_block_lacks_is_refused_in_words(monkeypatch):
    monkeypatch.setitem(BLOCKS, "gated", {"basic": GatedBlock})
    config = model_config(block="gated", family="imagenet", depth=50)
    with pytest.raises(UserError, match="a depth with bottleneck blocks, got 'gated'") as error:
        architecture.build_model(config, num_classes=3)
    assert all(name in str(error.value) for name in BLOCKS if "bottleneck" in BLOCKS[name])


@pytest.mark.parametrize("missing", CONTRACT)
def test_a_block_without_a_part_of_its_contract_is_refused_by_name(missing, monkeypatch):
    whole = {
        "expansion": 1,
        "activated": True,
        "residual": lambda self, x: x,
        "__call__": lambda self, x: x,
    }
    members = {name: whole[name] for name in whole if name != missing}
    monkeypatch.setitem(BLOCKS, "lame", {"basic": type("LameBlock", (Block,), members)})
    message = f"block 'lame' to define .*, got LameBlock without {missing};"
    with pytest.raises(UserError, match=message) as error:
        architecture.build_model(model_config(block="lame"), num_classes=3)
    assert "\n" not in str(error.value)


def test_a_block_that_extends_no_block_is_refused_by_name(monkeypatch):
    members = {"residual": None, "__call__": None, "expansion": 1, "activated": True}
    monkeypatch.setitem(BLOCKS, "lone", {"basic": type("LoneBlock", (nn.Module,), members)})
    with pytest.raises(UserError, match="block 'lone' to extend Block of .*, got LoneBlock"):
        blocks.find("lone", "basic")


@pytest.mark.parametrize("family", ["ImageNet", "vgg"])
def test_a_family_that_is_none_is_no_other_network(family):
    with pytest.raises(UserError, match=f"model.family in .*, got '{family}'"):
        build_resnet(family, 50, "projection", num_classes=3)


def test_a_new_block_whose_f_ends_with_a_norm_may_begin_with_zero(monkeypatch):
    monkeypatch.setitem(BLOCKS, "gated", {"basic": GatedBlock})
    config = model_config(block="gated", zero_init_residual=True)
    model = architecture.build_model(config, num_classes=3)
    params = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))["params"]
    assert not params["stage1_block1"]["bn2"]["scale"].any()


def test_vgg_has_no_blocks_to_choose(monkeypatch):
    monkeypatch.setitem(BLOCKS, "gated", {"basic": GatedBlock})
    config = model_config(family="vgg", depth=16, shortcut="none", block="gated")
    with pytest.raises(UserError, match="model.block in .* for VGG.* got 'gated'"):
        architecture.build_model(config, num_classes=3)


@pytest.mark.parametrize(
    "field, value",
    [
        ("norm", "none"),
        ("bn_scope", "global"),
        ("bottleneck_stride", "3x3"),
    ],
)
def test_vgg_refuses_fields_that_would_change_nothing(field, value):
    config = model_config(**{"family": "vgg", "depth": 16, "shortcut": "none", field: value})
    with pytest.raises(UserError, match=f"model.{field} in .* for VGG.* got {value!r}"):
        architecture.build_model(config, num_classes=3)


def test_an_older_config_has_the_papers_block():
    config = digits.get_config("resnet8").to_dict()
    del config["model"]["block"]
    older, newer = (parse(c, RunConfig).model for c in (config, digits.get_config().to_dict()))
    assert older.block == newer.block == "postactivation"
    assert architecture.build_model(older, num_classes=3).block is BasicBlock
