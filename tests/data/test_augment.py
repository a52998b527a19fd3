import jax
import jax.numpy as jnp
import numpy as np

from resnet_flax.data import augment as augmentation
from resnet_flax.data import stream
from resnet_flax.data.augment import COLOR_COMPONENTS, normalize

augment = jax.jit(augmentation.augment, static_argnames=("pad", "flip", "color"))
draw = jax.jit(jax.vmap(lambda key: augmentation.draw(key, pad=4)))


def augmented(images, pad=0, flip=False, color=False):
    keys = jax.random.split(jax.random.key(0), len(images))
    return augment(keys, images, pad=pad, flip=flip, color=color)


def test_no_two_draws_of_an_image_are_related():
    batch, columns = 1000, []
    for step in range(20):
        keys = augmentation.image_keys(np.uint32(3), np.int32(step), np.arange(batch))
        corner, mirrored, color = draw(keys)
        crops = stream.crop_draws(3, step, batch)
        columns.append(np.concatenate([corner, mirrored[:, None], color, crops], axis=1))
    table = np.concatenate(columns)
    table -= table.mean(0)
    # How far from the middle a number lies is to say nothing of the others, either.
    table = np.concatenate([table, np.delete(table, 2, axis=1) ** 2], axis=1)
    related = np.corrcoef(table.T)[np.triu_indices(table.shape[1], 1)]
    # 5 deviations of the correlation of 20,000 independent pairs.
    assert abs(related).max() < 5 / len(table) ** 0.5


def test_normalisation_subtracts_the_mean_of_each_pixel():
    images = np.array([[[[0], [255]]], [[[10], [55]]]], np.uint8)  # [2, 1, 2, 1]
    mean = images.mean(0, dtype=np.float32)
    expected = np.array([[[[-5.0], [100.0]]], [[[5.0], [-100.0]]]], np.float32) / 255
    np.testing.assert_allclose(normalize(images, mean), expected, rtol=1e-6)  # One rounding.


def test_every_crop_is_a_window_of_the_padded_image_and_all_windows_occur():
    image = jnp.arange(1.0, 13.0).reshape(4, 3, 1)
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)))
    windows = [padded[i : i + 4, j : j + 3] for i in range(3) for j in range(3)]
    crops = augmented(jnp.stack([image] * 300), pad=1)
    matches = np.array([[np.array_equal(crop, window) for window in windows] for crop in crops])
    assert (matches.sum(1) == 1).all()
    # 300 draws of 9: each is expected 33 times, and below 10 with probability 1e-6.
    assert (matches.sum(0) >= 10).all()


def test_half_of_the_images_are_mirrored_left_to_right():
    image = jnp.arange(1.0, 13.0).reshape(4, 3, 1)
    out = augmented(jnp.stack([image] * 400), flip=True)
    mirrored = np.array([np.array_equal(x, image[:, ::-1]) for x in out])
    assert all(np.array_equal(x, image) for x in out[~mirrored])
    assert 150 < mirrored.sum() < 250  # 5 deviations of a fair coin.


def test_an_images_draws_depend_on_its_own_key_alone():
    images = jax.random.normal(jax.random.key(0), (6, 4, 4, 3))
    keys = jax.random.split(jax.random.key(1), 6)
    whole, half = (
        augment(keys[part], images[part], pad=2, flip=True, color=True)
        for part in (slice(None), slice(3, None))
    )
    np.testing.assert_array_equal(half, whole[3:])


def test_what_is_not_asked_for_changes_nothing():
    images = jax.random.normal(jax.random.key(0), (3, 4, 4, 2))
    np.testing.assert_array_equal(augmented(images), images)


def test_a_channels_mean_is_subtracted_from_images_of_any_size():
    images = np.full((2, 3, 5, 3), 100, np.uint8)
    found = normalize(images, np.array([[[100, 90, 110]]], np.float32))
    expected = np.broadcast_to(np.float32([0, 10, -10]) / 255, images.shape)
    np.testing.assert_allclose(found, expected, rtol=1e-6)  # One rounding.


def test_each_image_is_shifted_by_one_colour_along_the_main_directions():
    images = jax.random.normal(jax.random.key(0), (2000, 2, 3, 3))
    shifted = np.asarray(augmented(images, color=True) - images)
    # 1e-6: the difference of numbers near 1 in float32.
    np.testing.assert_allclose(
        shifted, np.broadcast_to(shifted[:, :1, :1], shifted.shape), atol=1e-6
    )
    along = shifted[:, 0, 0] @ COLOR_COMPONENTS
    # A tenth of ImageNet's deviations; 10 %: of 2,000 draws a deviation is known to 1.6 %.
    np.testing.assert_allclose(along.std(0), [0.02175, 0.00188, 0.00045], rtol=0.1)
    assert (abs(along.mean(0)) < 4 * along.std(0) / 2000**0.5).all()


def test_the_main_directions_of_colour_are_orthogonal():
    # 1e-3: they are published with four digits.
    np.testing.assert_allclose(COLOR_COMPONENTS.T @ COLOR_COMPONENTS, np.eye(3), atol=1e-3)
