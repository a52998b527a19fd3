"""Normalisation and augmentation as pure functions of a key, inside the compiled step.

B, H, W, C: batch, height, width, channels.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from resnet_flax.runtime import bits

# Krizhevsky et al. (2012), Sec. 4.1: the principal components of ImageNet's RGB values in 0..1, by
# standard deviation, as published with fb.resnet.torch (github.com/facebookarchive).
COLOR_DEVIATIONS = np.array([0.2175, 0.0188, 0.0045], np.float32)
COLOR_COMPONENTS = np.array(
    [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]],
    np.float32,
)  # [RGB, component]


def image_keys(seed: jax.Array, step: jax.Array, places: jax.Array) -> jax.Array:
    """A key for each place in the global batch of a step: [B] int32 -> [B], whatever the device."""
    key = jax.random.fold_in(bits.key(seed), step)
    return jax.vmap(lambda place: jax.random.fold_in(key, place))(places)


class Draws(NamedTuple):
    """All that is random about one image on the device; `crops.py` has what workers draw."""

    corner: jax.Array  # [2] int32 in 0..2 pad: top and left of the crop in the padded image.
    mirrored: jax.Array  # [] bool
    color: jax.Array  # [3] float32, standard normal: weights of the colours' main directions.


@bits.pinned()
def draw(key: jax.Array, pad: int) -> Draws:
    """The draws of one image, each from a key of its own, whether they are used or not."""
    corner, mirrored, color = jax.random.split(key, 3)
    return Draws(
        jax.random.randint(corner, (2,), 0, 2 * pad + 1),
        jax.random.bernoulli(mirrored),
        jax.random.normal(color, (3,)),
    )


def normalize(images: jax.Array, mean: jax.Array) -> jax.Array:
    """Sec. 3.4, the mean subtracted: [B, H, W, C] uint8 -> float32.

    `mean` float32: of each pixel, [H, W, C], or of each channel, [1, 1, C].

    Both are divided by 255 first: BN removes the scale, and the inputs stay near 1.
    """
    return (images.astype(jnp.float32) - mean[None]) / 255.0


def augment(keys: jax.Array, images: jax.Array, *, pad: int, flip: bool, color: bool) -> jax.Array:
    """Crops, mirrors and shifts the colour of images, as far as asked for.

    - `keys` [B]: one key an image, so that an image's draws do not depend on its batch.
    - `images` [B, H, W, C] float32, normalised.
    """
    draws = jax.vmap(lambda key: draw(key, pad))(keys)
    images = jax.vmap(lambda image, of: _crop_and_mirror(image, of, pad, flip))(images, draws)
    return shift_color(images, draws.color) if color else images


def _crop_and_mirror(image: jax.Array, draws: Draws, pad: int, flip: bool) -> jax.Array:
    """Sec. 4.2: pad each side by `pad`, crop back to [H, W] at random, mirror half of the images.

    The padding is the mean image's value, zero.
    """
    if pad:
        top, left = draws.corner
        padded = jnp.pad(image, ((pad, pad), (pad, pad), (0, 0)))
        image = jax.lax.dynamic_slice(padded, (top, left, 0), image.shape)
    if flip:
        image = jnp.where(draws.mirrored, image[:, ::-1, :], image)
    return image


def shift_color(images: jax.Array, weights: jax.Array) -> jax.Array:
    """Krizhevsky et al. (2012), Sec. 4.1: each image shifted along the colours' main directions.

    - `images` [B, H, W, 3] float32, of range 1. The shift is one colour an image,
      sum_i a_i s_i p_i, with s_i the deviation along the direction p_i.
    - `weights` [B, 3] float32, standard normal; a_i are a tenth of them.
    """
    shifts = (0.1 * weights * COLOR_DEVIATIONS[None]) @ COLOR_COMPONENTS.T
    return images + shifts[:, None, None, :]
