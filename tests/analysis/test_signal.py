"""What is left of a signal, on cases known by hand."""

import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_flax.analysis import mean_field, signal
from resnet_flax.models import blocks
from resnet_flax.models.catalogue import build_resnet
from resnet_flax.training.steps import Batch


def test_the_cosine_is_the_mean_over_pairs():
    vectors = [np.array([1.0, 0.0]), np.array([2.0, 0.0]), np.array([0.0, 3.0])]
    assert signal.mean_cosine(vectors) == pytest.approx(1 / 3)
    assert signal.mean_cosine([vectors[0], -vectors[1]]) == pytest.approx(-1)
    for undefined in ([vectors[0]], [vectors[0], 0 * vectors[0]]):
        assert np.isnan(signal.mean_cosine(undefined))


def test_the_nearest_other_image_decides():
    features = np.array([[0.0], [1.0], [3.0], [3.5], [9.0]])
    # Nearest: 1, 0, 3, 2, 3.
    assert signal.neighbour_error(features, np.array([0, 0, 1, 2, 2])) == pytest.approx(40)


def test_the_regression_is_fitted_without_the_image_that_it_predicts():
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(30, 4)), rng.integers(3, size=30)
    features[:, 0] += labels
    centred = features - features.mean(axis=0)
    penalty = signal.PENALTY * np.square(centred).sum() / 4
    wrong = 0
    for i in range(30):
        rest = np.arange(30) != i
        design = np.c_[features[rest], np.ones(29)]
        gram = design.T @ design + penalty * np.diag([1, 1, 1, 1, 0])
        weights = np.linalg.solve(gram, design.T @ np.eye(3)[labels[rest]])
        wrong += (np.r_[features[i], 1] @ weights).argmax() != labels[i]
    assert 0 < wrong < 30
    assert signal.ridge_error(features, labels) == pytest.approx(100 * wrong / 30)


def test_the_regression_takes_no_memory_for_pairs_of_images():
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(4000, 4)), rng.integers(3, size=4000)
    tracemalloc.start()
    signal.ridge_error(features, labels)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4000 * 4000  # Bytes; a matrix of pairs has eight times as many.


def test_features_of_a_bfloat16_network_are_means_in_float32():
    images = jax.random.normal(jax.random.key(0), (4, 16, 16, 3)).astype(jnp.bfloat16)
    (found,) = signal._features([blocks.ReLU(name="stage1_relu")], {}, Batch(images, None)).values()
    expected = np.maximum(np.asarray(images, np.float32), 0).mean((1, 2))
    # 1e-6: float32 sums in another order. bfloat16 has 2e-3.
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_features_that_are_all_equal_say_nothing():
    labels = np.arange(10) % 2
    assert signal.ridge_error(np.ones((10, 3), np.float32), labels) == 100


def test_a_network_is_measured_by_stages():
    net = build_resnet("cifar", 8, "pad", (4, 4, 8), num_classes=3)
    images = jax.random.normal(jax.random.key(1), (2, 12, 8, 8, 3))
    batches = [Batch(image, jnp.arange(12) % 3) for image in images]
    variables = jax.jit(net.init)(jax.random.key(0), images[0])
    found = signal.measure(net, variables, batches)
    assert [stage.name for stage in found.stages] == ["stem", "stage1", "stage2", "stage3"]
    assert (found.batches, found.batch_size) == (2, 12)
    assert found.predicted_ratio == mean_field.gradient_ratio((1, 1, 1), (4, 4, 8))

    def loss(params, batch):
        logits, _ = net.apply(
            {**variables, "params": params}, batch.image, train=True, mutable=["batch_stats"]
        )
        return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(12), batch.label])

    whole = [jax.jit(jax.grad(loss))(variables["params"], batch) for batch in batches]
    kernels = [g["stage2_block1"] for g in whole]
    vectors = [np.r_[g["conv1"]["kernel"].ravel(), g["conv2"]["kernel"].ravel()] for g in kernels]
    # 1e-3: float32, in another order.
    cosine = found.stages[2].gradient_cosine
    assert cosine == pytest.approx(signal.mean_cosine(vectors), abs=1e-3)


@pytest.mark.parametrize("features", [np.ones((1, 3)), np.full((4, 3), np.inf), [[np.nan], [1.0]]])
def test_one_image_or_features_that_are_not_finite_have_no_error(features):
    features = np.asarray(features, np.float32)
    labels = np.arange(len(features)) % 2
    assert signal.neighbour_error(features, labels) is None
    assert signal.ridge_error(features, labels) is None
