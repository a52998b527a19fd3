import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_flax.data.augment import normalize
from resnet_flax.data.order import padded_batch
from resnet_flax.data.sources import Split
from resnet_flax.models.catalogue import build_resnet
from resnet_flax.runtime.parallel import Devices
from resnet_flax.training import optim, steps
from resnet_flax.training.evaluation import Evaluator
from resnet_flax.training.feed import ResidentFeed

MODEL = build_resnet("cifar", 8, "pad", (4, 8, 8), num_classes=10)
IMAGES = np.random.RandomState(0).randint(0, 256, (21, 8, 8, 1)).astype(np.uint8)
LABELS = np.random.RandomState(1).randint(0, 10, 21).astype(np.int32)
MEAN = IMAGES.mean(0, dtype=np.float32)
VARIABLES = steps.init_state(MODEL, optim.sgd(lambda _: 0.1), 0, MEAN).variables
DEVICES = [(1, "pmap"), (3, "shard_map"), (4, "pmap"), (4, "shard_map")]
# Half of all; `make slow` has the rest.
CASES = [
    pytest.param(size, *devices, marks=() if (i + j) % 2 == 0 else pytest.mark.slow)
    for i, size in enumerate((3, 4, 5, 21))
    for j, devices in enumerate(DEVICES)
]


@functools.cache
def expected_logits():
    """Those of all images at once, on one device."""
    logits = jax.jit(MODEL.apply)(VARIABLES, normalize(jnp.asarray(IMAGES), MEAN))
    return np.asarray(logits, np.float64)


@pytest.mark.parametrize("size", [1, 7, 8, 9, 16])
def test_every_index_is_in_the_mask_once(size):
    batches = [padded_batch(size, 8, number) for number in range(-(-size // 8))]
    kept = np.concatenate([indices[mask] for indices, mask in batches])
    np.testing.assert_array_equal(kept, np.arange(size))
    assert all(indices.max() < size for indices, _ in batches)


@pytest.mark.parametrize("size, device_count, backend", CASES)
def test_the_scores_are_those_of_all_images_at_once_on_any_device_count(
    size, device_count, backend
):
    devices = Devices(backend, jax.devices()[:device_count])
    evaluate = Evaluator(MODEL, devices, batch_size=8)
    feed = ResidentFeed(Split(IMAGES[:size], LABELS[:size], 10), devices)
    scores = evaluate(devices.replicate(VARIABLES), devices.replicate(MEAN), feed)
    logits = expected_logits()[:size]
    log_softmax = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    assert scores["images"] == size
    assert scores["error"] == np.mean(logits.argmax(1) != LABELS[:size])
    # 1e-5: float32 logits in batches of another size.
    expected = -log_softmax[np.arange(size), LABELS[:size]].mean()
    assert scores["loss"] == pytest.approx(expected, rel=1e-5)
