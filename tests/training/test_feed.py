import contextlib
import functools

import jax
import numpy as np
import optax
import pytest
from flax import linen as nn

from resnet_flax.data import sources, stream, workers
from resnet_flax.data.stream import Crops
from resnet_flax.runtime.parallel import Devices
from resnet_flax.training import steps
from resnet_flax.training.evaluation import Evaluator
from resnet_flax.training.feed import ResidentFeed, StreamFeed
from tests import varied

MEAN = (124.0, 116.0, 104.0)
pytestmark = pytest.mark.usefixtures("one_worker")


@pytest.fixture(scope="module")
def splits(varied_folder):
    """(one in memory, one that is read as needed)."""
    crops = Crops("scale", 32, (36, 60))
    return (
        sources.load_split("digits", f"train[:{varied.TRAIN}]"),
        stream.open_stream("varied", "train", crops, MEAN, varied_folder),
    )


def feed_of(split, device_count=1, backend="pmap"):
    devices = Devices(backend, jax.devices()[:device_count])
    if isinstance(split, sources.Split):
        return ResidentFeed(split, devices)
    return StreamFeed(split, devices, print)


def as_one(fed, axis):
    """[D, ..., B/D, ...] on devices -> [..., B, ...], as on one device."""
    parts = [np.concatenate(list(np.asarray(leaf)), axis) for leaf in jax.tree.leaves(fed)]
    return parts


def trained(feed, steps, per_dispatch):
    with feed.training(0, 8, steps, per_dispatch) as dispatches:
        return [as_one(fed, axis=1) for fed in dispatches]


@pytest.mark.parametrize("kind", [0, 1])
def test_steps_are_fed_the_same_on_any_number_of_devices(splits, kind):
    expected = trained(feed_of(splits[kind]), range(3, 8), 2)
    assert [len(dispatch[-1]) for dispatch in expected] == [2, 2, 1]
    for count, backend in ((4, "pmap"), (2, "shard_map")):
        found = trained(feed_of(splits[kind], count, backend), range(3, 8), 2)
        jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("kind", [0, 1])
@pytest.mark.parametrize("device_count, batch_size", [(1, 7), (4, 16)])
def test_an_evaluation_is_fed_every_image_once(splits, kind, device_count, batch_size):
    feed = feed_of(splits[kind], device_count)
    with feed.evaluation(batch_size) as batches:
        fed = [(as_one(images, 0)[-1], as_one(mask, 0)[0]) for images, mask in batches]
    found = np.concatenate([given[mask] for given, mask in fed])
    assert {len(mask) for _, mask in fed} == {batch_size}
    if kind == 0:  # Indices.
        np.testing.assert_array_equal(found, np.arange(varied.TRAIN))
    else:  # Labels, each of one image.
        assert sorted(found) == list(range(varied.TRAIN))


class Linear(nn.Module):
    """A network of one layer, on the mean colour."""

    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(varied.TRAIN)(x.mean((1, 2)))


def trained_and_scored(split, backend):
    """The parameters after two steps, and their loss over the split."""
    feed = feed_of(split, 2, backend)
    devices, optimizer = feed.devices, optax.sgd(0.01)
    state = steps.init_state(Linear(), optimizer, 0, split.image_mean(), split.image_shape)
    augmentation = {"pad": 0, "flip": True, "color": False, "log_every": 2}
    step = functools.partial(steps.train_steps, model=Linear(), optimizer=optimizer, **augmentation)
    train_steps = devices.map(step, sharded=(False, False, True), donate=0)
    state = devices.replicate(state)
    with feed.training(0, 8, range(2), 2) as dispatches:
        for fed in dispatches:
            state = train_steps(state, feed.resident, fed)
    scores = Evaluator(Linear(), devices, 16)(state.variables, state.image_mean, feed)
    return jax.device_get(state.params), scores["loss"]


@pytest.mark.parametrize("kind", [0, 1])
def test_both_backends_train_and_evaluate_alike_from_either_feed(splits, kind, monkeypatch):
    def in_this_process(load, then, say):
        return contextlib.nullcontext(then(load(number)) for number in range(len(load)))

    monkeypatch.setattr(workers, "in_background", in_this_process)
    found = [trained_and_scored(splits[kind], backend) for backend in ("pmap", "shard_map")]
    # 1e-5: float32 sums in another order.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), *found)
