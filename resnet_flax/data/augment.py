"""Normalisation and augmentation as pure functions of a key, inside the compiled step.

B, H, W, C: batch, height, width, channels.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from resnet_flax.runtime import bits

# Krizhevsky et al. (2012), Sec. 4.1: the principal components of ImageNet's RGB values in 0..1, and
# their eigenvalues. Published with fb.resnet.torch (github.com/facebookarchive).
COLOR_EIGENVALUES = np.array([0.2175, 0.0188, 0.0045], np.float32)
COLOR_COMPONENTS = np.array(
    [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]],
    np.float32,
)  # [RGB, component]


def image_keys(seed: jax.Array, step: jax.Array, places: jax.Array) -> jax.Array:
    """One key for each place in the global batch of a step: [B] int32 -> [B].

    A key does not depend on the device that computes it.
    """
    key = jax.random.fold_in(bits.key(seed), step)
    return jax.vmap(lambda place: jax.random.fold_in(key, place))(places)


class Draws(NamedTuple):
    """The random numbers that the device draws for one image. Workers draw others: `crops.py`."""

    corner: jax.Array  # [2] int32 in 0..2 pad: top and left of the crop in the padded image.
    mirrored: jax.Array  # [] bool
    color: jax.Array  # [3] float32, standard normal: weights of the principal components.


@bits.pinned()
def draw(key: jax.Array, pad: int) -> Draws:
    """The draws of one image, each from its own key. Unused ones are drawn too."""
    corner, mirrored, color = jax.random.split(key, 3)
    return Draws(
        jax.random.randint(corner, (2,), 0, 2 * pad + 1),
        jax.random.bernoulli(mirrored),
        jax.random.normal(color, (3,)),
    )


def normalize(images: jax.Array, mean: jax.Array) -> jax.Array:
    """Subtracts the mean (Sec. 3.4) and divides by 255: [B, H, W, C] uint8 -> float32.

    `mean` float32: one for each pixel, [H, W, C], or one for each channel, [1, 1, C].

    The division keeps the inputs near 1. BN after the first convolution removes the scale. Networks
    without BN there, such as pre-activation ones and VGG, depend on it.
    """
    return (images.astype(jnp.float32) - mean[None]) / 255.0


def augment(keys: jax.Array, images: jax.Array, *, pad: int, flip: bool, color: bool) -> jax.Array:
    """Crops images if `pad`, mirrors them if `flip`, and shifts their colour if `color`.

    - `keys` [B]: one key for each image, so that its draws do not depend on the batch.
    - `images` [B, H, W, C] float32, normalised.
    """
    draws = jax.vmap(lambda key: draw(key, pad))(keys)
    if pad:
        # On a TPU, the slices become a loop over the images. On a CPU, they cost a third.
        images = jax.lax.platform_dependent(
            images,
            draws,
            tpu=functools.partial(crop_by_products, pad=pad, flip=flip),
            default=functools.partial(crop_by_slices, pad=pad, flip=flip),
        )
    elif flip:
        images = crop_by_slices(images, draws, pad=0, flip=True)
    return shift_color(images, draws.color) if color else images


def crop_by_slices(images: jax.Array, draws: Draws, *, pad: int, flip: bool) -> jax.Array:
    """Pads each side by `pad`, crops [H, W] at random, mirrors half of the images (Sec. 4.2).

    The padding is zero, the value of the mean image. `images` [B, H, W, C], `draws` [B, ...].
    """
    return jax.vmap(lambda image, of: _crop_and_mirror(image, of, pad, flip))(images, draws)


def crop_by_products(images: jax.Array, draws: Draws, *, pad: int, flip: bool) -> jax.Array:
    """The same bits as `crop_by_slices`, from two matrix products that choose rows and columns."""
    height, width = images.shape[1:3]
    top, left = draws.corner.T
    # Where each row and column of the crop lies in its image. Outside, all weights are zero.
    rows = top[:, None] - pad + jnp.arange(height)[None]
    columns = left[:, None] - pad + jnp.arange(width)[None]
    if flip:
        columns = jnp.where(draws.mirrored[:, None], columns[:, ::-1], columns)
    # The highest precision keeps every bit of a float32 that is multiplied by 1.
    product = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    images = product("bih,bhwc->biwc", jax.nn.one_hot(rows, height), images)
    return product("bjw,biwc->bijc", jax.nn.one_hot(columns, width), images)


def _crop_and_mirror(image: jax.Array, draws: Draws, pad: int, flip: bool) -> jax.Array:
    if pad:
        top, left = draws.corner
        padded = jnp.pad(image, ((pad, pad), (pad, pad), (0, 0)))
        image = jax.lax.dynamic_slice(padded, (top, left, 0), image.shape)
    if flip:
        image = jnp.where(draws.mirrored, image[:, ::-1, :], image)
    return image


def shift_color(images: jax.Array, weights: jax.Array) -> jax.Array:
    """Shifts each image along the principal components (Krizhevsky et al. 2012, Sec. 4.1).

    - `images` [B, H, W, 3] float32, of range 1. All pixels of an image shift by sum_i a_i s_i p_i.
      s_i is the eigenvalue of the component p_i.
    - `weights` [B, 3] float32, standard normal. a_i is a tenth of weight i.
    """
    shifts = (0.1 * weights * COLOR_EIGENVALUES[None]) @ COLOR_COMPONENTS.T
    return images + shifts[:, None, None, :]
