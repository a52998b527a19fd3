"""The loss, and masked totals that add up over batches, steps and devices.

B: batch; K: classes.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax


class Totals(NamedTuple):
    """Sums over images. One division at the end gives the exact mean over any number of batches."""

    loss: jax.Array  # [] float32
    errors: jax.Array  # [] int32
    images: jax.Array  # [] int32


def zeros() -> Totals:
    """The totals of no image."""
    return Totals(jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))


def cross_entropy(logits: jax.Array, label: jax.Array) -> jax.Array:
    """-log softmax(logits)[label]: [B, K] float32, [B] int32 -> [B] float32, in nats."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, label)


def totals(logits: jax.Array, label: jax.Array, mask: jax.Array) -> Totals:
    """The totals of one batch: [B, K] float32, [B] int32, [B] bool. Only images in `mask` count.

    An image is an error if another class has the largest logit, or if a logit is not finite.
    """
    wrong = (jnp.argmax(logits, axis=-1) != label) | ~jnp.isfinite(logits).all(axis=-1)
    return Totals(
        jnp.sum(cross_entropy(logits, label), where=mask),
        jnp.sum(wrong, where=mask, dtype=jnp.int32),
        jnp.sum(mask, dtype=jnp.int32),
    )


def means(sums: Totals) -> dict[str, float]:
    """Mean loss in nats and error as a fraction, as Python numbers. Needs at least one image."""
    loss, errors, images = jax.device_get(sums)
    return {"loss": float(loss) / int(images), "error": int(errors) / int(images)}
