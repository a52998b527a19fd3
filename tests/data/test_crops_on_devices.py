"""A TPU crops by matrix products what others crop by slices. The bits are the same."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_flax.data import augment


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("pad, shape", [(4, (8, 8, 1)), (2, (5, 7, 3)), (6, (4, 4, 3))])
def test_products_crop_and_mirror_as_slices_do_bit_for_bit(pad, shape, flip):
    keys = jax.random.split(jax.random.key(0), 200)
    draws = jax.vmap(lambda key: augment.draw(key, pad))(keys)
    # Both signs, and exponents from the largest image to rounding errors of a mean.
    magnitudes = 2.0 ** np.random.default_rng(0).integers(-24, 1, (200, *shape))
    images = jnp.asarray(
        magnitudes * np.random.default_rng(1).normal(size=(200, *shape)), "float32"
    )
    crops = [
        np.asarray(jax.jit(functools.partial(crop, pad=pad, flip=flip))(images, draws))
        for crop in (augment.crop_by_slices, augment.crop_by_products)
    ]
    np.testing.assert_array_equal(*crops)


def test_only_a_tpu_crops_by_products():
    keys = jax.random.split(jax.random.key(0), 16)
    crop = jax.jit(functools.partial(augment.augment, pad=2, flip=True, color=False))
    traced = crop.trace(keys, jnp.zeros((16, 8, 8, 3)))
    for platform, products in (("cpu", 0), ("cuda", 0), ("tpu", 2)):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert text.count("stablehlo.dot_general") == products
        assert ("stablehlo.gather" in text) == (products == 0)
