import jax
import numpy as np
import pytest

from resnet_flax.data import augment, stream
from resnet_flax.data.order import batch_indices


@pytest.mark.parametrize("batch_size, size", [(16, 92), (128, 50), (10, 30)])
def test_every_image_is_seen_once_an_epoch(batch_size, size):
    steps = -(-3 * size // batch_size)
    seen = np.concatenate([batch_indices(0, step, batch_size, size) for step in range(steps)])
    for epoch in range(3):
        np.testing.assert_array_equal(
            np.sort(seen[epoch * size : (epoch + 1) * size]), np.arange(size)
        )


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = [tuple(batch_indices(seed, step, 64, 64)) for seed in (0, 1) for step in (0, 1)]
    assert len(set(orders)) == 4


def test_the_order_is_the_same_in_any_version_of_numpy():
    # Runs recorded years ago resume in this order. If this fails, the shuffle has changed.
    np.testing.assert_array_equal(batch_indices(3, 7, 5, 11), [8, 3, 9, 0, 5])


def test_the_draws_are_those_of_all_earlier_runs():
    # As above: if this fails, runs of older versions do not resume with the same images.
    keys = augment.image_keys(np.uint32(3), np.int32(7), np.arange(3))
    drawn = jax.vmap(lambda key: augment.draw(key, pad=4))(keys)
    np.testing.assert_array_equal(drawn.corner, [[4, 7], [8, 5], [4, 7]])
    np.testing.assert_array_equal(drawn.mirrored, [True, True, False])
    # 1e-6: the normal distribution's inverse, in float32.
    np.testing.assert_allclose(drawn.color[0], [-2.0748839, 0.1701057, 1.1652845], rtol=1e-6)
    crops = stream.crop_draws(3, 7, 2)
    np.testing.assert_array_equal(crops[:, 0], [0.8940639308997029, 0.06977767136760094])
