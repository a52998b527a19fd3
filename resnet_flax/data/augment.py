"""Normalisation and augmentation as pure functions of a key, inside the compiled step.

B, H, W, C: batch, height, width, channels.
"""

import jax
import jax.numpy as jnp
import numpy as np

# Krizhevsky et al. (2012), Sec. 4.1: the principal components of ImageNet's RGB values in 0..1, by
# standard deviation, as published with fb.resnet.torch (github.com/facebookarchive).
COLOR_DEVIATIONS = np.array([0.2175, 0.0188, 0.0045], np.float32)
COLOR_COMPONENTS = np.array(
    [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]],
    np.float32,
)  # [RGB, component]


def normalize(images: jax.Array, mean: jax.Array) -> jax.Array:
    """Sec. 3.4, the mean subtracted: [B, H, W, C] uint8 -> float32.

    `mean` float32: of each pixel, [H, W, C], or of each channel, [1, 1, C].

    Both are divided by 255 first: BN removes the scale, and the inputs stay near 1.
    """
    return (images.astype(jnp.float32) - mean[None]) / 255.0


def pad_crop_flip(keys: jax.Array, images: jax.Array, pad: int, flip: bool) -> jax.Array:
    """Sec. 4.2: pad each side by `pad`, crop back to [H, W] at random, mirror half of the images.

    - `keys` [B]: one key an image, so that an image's crop does not depend on its batch.
    - `images` [B, H, W, C] float32, normalised: the padding is the mean image's value, zero.
    """
    return jax.vmap(lambda key, image: _pad_crop_flip(key, image, pad, flip))(keys, images)


def _pad_crop_flip(key: jax.Array, image: jax.Array, pad: int, flip: bool) -> jax.Array:
    crop_key, flip_key = jax.random.split(key)
    if pad:
        top, left = jax.random.randint(crop_key, (2,), 0, 2 * pad + 1)
        padded = jnp.pad(image, ((pad, pad), (pad, pad), (0, 0)))
        image = jax.lax.dynamic_slice(padded, (top, left, 0), image.shape)
    if flip:
        image = jnp.where(jax.random.bernoulli(flip_key), image[:, ::-1, :], image)
    return image


def shift_color(keys: jax.Array, images: jax.Array) -> jax.Array:
    """Krizhevsky et al. (2012), Sec. 4.1: each image shifted along the colours' main directions.

    - `keys` [B]: one key an image.
    - `images` [B, H, W, 3] float32, of range 1. The shift is one colour an image,
      sum_i a_i s_i p_i with a_i ~ N(0, 0.1^2), s_i the deviation along the direction p_i.
    """
    weights = 0.1 * jax.vmap(lambda key: jax.random.normal(key, (3,)))(keys)
    shifts = (weights * COLOR_DEVIATIONS[None]) @ COLOR_COMPONENTS.T
    return images + shifts[:, None, None, :]
