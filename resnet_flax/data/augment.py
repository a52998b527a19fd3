"""Normalisation and augmentation as pure functions of a key, inside the compiled step.

B, H, W, C: batch, height, width, channels.
"""

import jax
import jax.numpy as jnp


def normalize(images: jax.Array, mean: jax.Array) -> jax.Array:
    """Sec. 3.4, per-pixel mean subtracted: [B, H, W, C] uint8, [H, W, C] float32 -> float32.

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
