from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_flax.models import stacking
from resnet_flax.models.catalogue import build_resnet
from tests.given import is_stacked

# Family, depth, shortcut: stages of 3, of 2, and of 3 to 6 blocks.
NETS = [("cifar", 20, "pad"), ("cifar", 14, "none"), ("imagenet", 50, "projection")]
LABELS = jnp.arange(4)


def build(family, depth, shortcut, **fields):
    widths = (4, 6, 8) if family == "cifar" else (4, 4, 6, 8)
    return build_resnet(family, depth, shortcut, widths, num_classes=5, **fields)


def step(model, variables, images):
    """The loss with the new statistics, and the gradients."""

    def loss_fn(params):
        state = {"params": params, "batch_stats": variables["batch_stats"]}
        logits, updates = model.apply(state, images, train=True, mutable=["batch_stats"])
        return -jax.nn.log_softmax(logits)[jnp.arange(4), LABELS].mean(), (logits, updates)

    return jax.device_get(jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(variables["params"]))


@pytest.mark.parametrize(
    "net, fields",
    [
        pytest.param(NETS[0], {"scan": True}, marks=pytest.mark.slow),
        pytest.param(NETS[0], {"remat": True}, marks=pytest.mark.slow),
        (NETS[0], {"scan": True, "remat": True}),
        (NETS[1], {"scan": True}),
        pytest.param(NETS[2], {"scan": True, "remat": True}, marks=pytest.mark.slow),
    ],
)
def test_scanned_and_rematerialised_networks_are_the_network(net, fields):
    images = jax.random.normal(jax.random.key(1), (4, 32, 32, 3))
    unrolled = build(*net)
    stacked = jax.device_get(build(*net, scan=True).init(jax.random.key(0), images))
    # Other than at initialisation, where all scales are 1 and all means 0.
    leaves, tree = jax.tree.flatten(stacked)
    rng = np.random.default_rng(0)
    shaken = [leaf + 0.1 * rng.random(leaf.shape, np.float32) for leaf in leaves]
    stacked = jax.tree.unflatten(tree, shaken)
    variables = stacked if fields.get("scan") else stacking.unstack(stacked)
    found = step(unrolled.clone(**fields), variables, images)
    expected = step(unrolled, stacking.unstack(stacked), images)
    found = stacking.unstack(found)
    # 2e-5 of the largest value: float32 sums in another order, through up to 50 layers.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * np.abs(b).max()),
        found,
        expected,
    )


def test_unstacked_parameters_have_the_unrolled_networks_names_and_shapes():
    images = jnp.zeros((1, 32, 32, 3))
    for net in NETS:
        shapes = jax.eval_shape(build(*net, scan=True).init, jax.random.key(0), images)
        stacked = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
        expected = jax.eval_shape(build(*net).init, jax.random.key(0), images)
        unstacked = stacking.unstack(stacked)
        assert jax.tree.map(jnp.shape, unstacked) == jax.tree.map(jnp.shape, expected)


def test_stacking_is_lossless_and_keeps_the_order_of_twelve_blocks():
    net = {f"stage1_block{i}": {"conv1": {"kernel": np.full((2,), i)}} for i in range(1, 13)}
    tree: Any = ({"fc": np.zeros(3), **net}, np.ones(()))
    stacked = stacking.stack(tree)
    assert stacked[0].keys() == {"fc", "stage1_block1", "stage1_blocks"}
    kernels = stacked[0]["stage1_blocks"]["conv1"]["kernel"]
    assert kernels[:, 0].tolist() == list(range(2, 13))
    assert is_stacked(stacked)
    assert not is_stacked(tree)
    back = stacking.unstack(stacked)
    assert jax.tree.structure(back) == jax.tree.structure(tree)
    jax.tree.map(np.testing.assert_array_equal, back, tree)
