import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_flax.training import metrics


def test_the_loss_is_minus_the_log_of_the_softmax():
    logits = np.array([[1.0, 2.0, 0.5], [0.0, 0.0, 0.0]], np.float32)
    expected = -np.log(np.exp(logits) / np.exp(logits).sum(1, keepdims=True))[[0, 1], [2, 1]]
    # 1e-6: float32.
    np.testing.assert_allclose(
        metrics.cross_entropy(logits, jnp.array([2, 1])), expected, rtol=1e-6
    )


def test_masked_totals_are_those_of_a_slice():
    logits = jax.random.normal(jax.random.key(0), (8, 5))
    label = jax.random.randint(jax.random.key(1), (8,), 0, 5)
    masked = metrics.totals(logits.at[6:].set(jnp.nan), label, jnp.arange(8) < 6)
    whole = metrics.totals(logits[:6], label[:6], jnp.ones(6, bool))
    np.testing.assert_allclose(masked, whole, rtol=1e-6)
    assert masked.images == 6


def test_logits_that_are_not_finite_are_errors():
    logits = jnp.array([[jnp.nan, 0.0], [5.0, 0.0]])
    assert metrics.totals(logits, jnp.array([0, 0]), jnp.ones(2, bool)).errors == 1


def test_means_divide_once():
    sums = metrics.Totals(jnp.float32(3.0), jnp.int32(1), jnp.int32(4))
    assert metrics.means(sums) == pytest.approx({"loss": 0.75, "error": 0.25})
