import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from resnet_flax.analysis import landscape
from resnet_flax.models import stacking
from resnet_flax.models.catalogue import build_resnet
from resnet_flax.training.steps import Batch

RANDOM = np.random.RandomState(0)


class Linear(nn.Module):
    @nn.compact
    def __call__(self, images, train=False):
        return nn.Dense(3, use_bias=False, name="fc")(images)


X, LABELS = RANDOM.randn(2, 4, 5), RANDOM.randint(0, 3, (2, 4))
BATCHES = Batch(jnp.asarray(X, jnp.float32), jnp.asarray(LABELS, jnp.int32))


def variables(w):
    return {"params": {"fc": {"kernel": np.float32(w)}}, "batch_stats": {}}


def loss_and_error(w):
    """Over all images of both batches."""
    logits = (X @ w).reshape(-1, 3)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = LABELS.ravel()
    return -np.log(p[np.arange(8), labels]).mean(), (logits.argmax(1) != labels).mean()


def test_the_line_leads_from_the_first_to_the_last_weights():
    first, last = RANDOM.randn(2, 5, 3)
    positions = np.array([0, 0.25, 1, 1.5])
    found = landscape.line(Linear(), variables(first), variables(last), BATCHES, positions, step=9)
    expected = [loss_and_error(first + t * (last - first)) for t in positions]
    # 1e-5: float32 against float64.
    np.testing.assert_allclose(found.losses, [loss for loss, _ in expected], rtol=1e-5)
    assert list(found.errors) == [error for _, error in expected]
    assert (found.positions, found.step, found.images) == ((0, 0.25, 1, 1.5), 9, 8)


def test_rows_of_the_plane_go_along_the_first_direction_and_columns_along_the_second():
    w, positions = RANDOM.randn(5, 3), np.array([-1, 0, 2])
    found = landscape.plane(Linear(), variables(w), BATCHES, positions, step=9, seed=4)
    d, e = (
        landscape.filter_normalized_direction(4 + i, variables(w)["params"])["fc"]["kernel"]
        for i in (0, 1)
    )
    expected = [[loss_and_error(w + i * d + j * e)[0] for j in positions] for i in positions]
    np.testing.assert_allclose(found.losses, expected, rtol=1e-5)  # As above.
    assert np.abs(d - e).max() > 0.1


def test_the_largest_seed_has_a_plane():
    w = RANDOM.randn(5, 3)
    found = landscape.plane(
        Linear(), variables(w), BATCHES, np.array([0, 1]), step=1, seed=2**32 - 1
    )
    np.testing.assert_allclose(found.losses[0][0], loss_and_error(w)[0], rtol=1e-5)  # As above.


def test_a_directions_filters_are_as_long_as_the_networks_and_bn_and_biases_stay():
    net = build_resnet("cifar", 8, "pad", (2, 3, 4), num_classes=3)
    shapes = jax.eval_shape(net.init, jax.random.key(0), np.ones((1, 8, 8, 1)))["params"]
    params = jax.tree.map(lambda shape: RANDOM.randn(*shape.shape), shapes)
    direction = landscape.filter_normalized_direction(0, params)
    kernel, moved = (tree["stage2_block1"]["conv1"]["kernel"] for tree in (params, direction))
    assert kernel.shape == (3, 3, 2, 3)
    for output in range(3):
        length = np.linalg.norm(kernel[..., output])
        assert np.linalg.norm(moved[..., output]) == pytest.approx(length, rel=1e-5)
    assert not np.any(direction["fc"]["bias"])
    assert not np.any(direction["bn"]["scale"]) and not np.any(direction["bn"]["bias"])


def test_a_network_is_seen_in_train_mode():
    # With running averages of 0 and 1, another scale of the kernels before BN is another loss;
    # with a batch's own it is the same but for epsilon.
    net = build_resnet("cifar", 8, "pad", (2, 2, 2), num_classes=3)
    images = RANDOM.randn(1, 6, 8, 8, 1).astype(np.float32)
    batches = Batch(jnp.asarray(images), jnp.asarray([[0, 1, 2, 0, 1, 2]], jnp.int32))
    first = jax.device_get(jax.jit(net.init)(jax.random.key(0), images[0]))
    last = {**first, "params": {**first["params"], "conv": {}}}
    last["params"]["conv"]["kernel"] = 9 * first["params"]["conv"]["kernel"]
    found = landscape.line(net, first, last, batches, np.array([0, 1]), step=1)
    assert found.losses[0] == pytest.approx(found.losses[1], rel=1e-3)  # BN's epsilon.


def test_a_loss_that_is_not_finite_is_none():
    inf = np.full((5, 3), np.inf)
    found = landscape.plane(Linear(), variables(inf), BATCHES, np.array([0.0, 1]), step=1, seed=0)
    assert found.losses[0][0] is None


def test_a_scanned_network_has_the_landscape_of_its_twin():
    images = RANDOM.randn(1, 6, 8, 8, 1).astype(np.float32)
    batches = Batch(jnp.asarray(images), jnp.asarray([[0, 1, 2, 0, 1, 2]], jnp.int32))
    nets = [
        build_resnet("cifar", 14, "pad", (2, 2, 2), num_classes=3, scan=s) for s in (False, True)
    ]
    shapes = jax.eval_shape(nets[0].init, jax.random.key(0), images[0])
    given = jax.tree.map(lambda shape: np.float32(RANDOM.rand(*shape.shape)), shapes)
    positions = np.array([-1.0, 0.5])
    one, other = (landscape.plane(net, given, batches, positions, step=1, seed=0) for net in nets)
    np.testing.assert_allclose(one.losses, other.losses, rtol=1e-5)  # Another program's rounding.
    stacked = stacking.stack(given)  # As `load_run` gives those of very deep networks.
    assert landscape.plane(nets[1], stacked, batches, positions, step=1, seed=0) == other
    ends = [landscape.line(nets[1], given, v, batches, positions, step=1) for v in (given, stacked)]
    assert ends[0] == ends[1]
