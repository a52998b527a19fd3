import functools
import re

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from resnet_flax.data.augment import draw, normalize
from resnet_flax.models.catalogue import build_resnet
from resnet_flax.runtime import bits
from resnet_flax.runtime.parallel import DATA_AXIS, Devices
from resnet_flax.training import metrics, optim, steps
from tests.conftest import OPTIMIZED

BACKENDS = ["pmap", "shard_map"]
OPTIMIZER = optim.sgd(lambda _: 0.1)
IMAGES = np.random.RandomState(0).randint(0, 256, (24, 8, 8, 1)).astype(np.uint8)
LABELS = np.random.RandomState(1).randint(0, 10, 24).astype(np.int32)
MEAN = IMAGES.mean(0, dtype=np.float32)


def model(scope="global", shortcut="pad"):
    axis = DATA_AXIS if scope == "global" else None
    return build_resnet("cifar", 8, shortcut, (4, 8, 8), num_classes=10, norm_axis=axis)


def mapped_steps(net, devices, pad=1, flip=True, log_every=100):
    return devices.map(
        steps.train_steps,
        (False, False, True),
        donate=0,
        model=net,
        optimizer=OPTIMIZER,
        pad=pad,
        flip=flip,
        color=False,
        log_every=log_every,
    )


@functools.cache
def host_state(net, seed=0):
    return jax.device_get(steps.init_state(net, OPTIMIZER, np.uint32(seed), MEAN))


def train(
    net, device_count, batches, backend="pmap", pad=1, flip=True, log_every=100, optimized=False
):
    """The state after `batches` [calls, k, B] of image indices.

    `optimized`: by the program that users get, not the one that compiles quickly.
    """
    devices = Devices(backend, jax.devices()[:device_count])
    mapped = mapped_steps(net, devices, pad=pad, flip=flip, log_every=log_every)
    data = devices.replicate(steps.Images(IMAGES, LABELS))
    state = devices.replicate(host_state(net))
    if optimized:
        example = devices.shard(np.asarray(batches[0], np.int32))
        mapped = mapped.lower(state, data, example).compile(OPTIMIZED)
    for indices in np.asarray(batches, np.int32):
        state = mapped(state, data, devices.shard(indices))
    return jax.device_get(state)


def assert_close(a, b, tolerance):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance), a, b
    )


BATCHES = np.random.RandomState(2).permutation(24)[:16].reshape(2, 1, 8)


@pytest.mark.parametrize(
    "device_count, backend",
    [
        (4, "pmap"),
        (2, "shard_map"),
        pytest.param(2, "pmap", marks=pytest.mark.slow),
        pytest.param(4, "shard_map", marks=pytest.mark.slow),
    ],
)
def test_several_devices_take_the_steps_that_one_device_would(backend, device_count):
    # 2e-5: float32 sums in another order, through two steps at rate 0.1. A psum for a pmean is off
    # by the device count; a crop that depends on the device by far more than the tolerance.
    assert_close(train(model(), device_count, BATCHES, backend), train(model(), 1, BATCHES), 2e-5)


@pytest.mark.parametrize("scope", ["device", "global"])
def test_a_second_copy_of_a_shard_changes_nothing(scope):
    # Without augmentation, which differs by place. 2e-5: as above.
    once = BATCHES[:, :, :4]
    twice = np.concatenate([once, once], axis=-1)
    one, two = (
        train(model(scope), n, batches, pad=0, flip=False) for n, batches in ((1, once), (2, twice))
    )
    assert two.totals.images == 2 * one.totals.images
    assert_close(two.replace(totals=one.totals), one, 2e-5)


def test_the_optimised_program_takes_the_same_steps():
    # 2e-5: as above.
    quick, optimized = (train(model(), 2, BATCHES, "shard_map", optimized=o) for o in (False, True))
    assert_close(optimized, quick, 2e-5)


def test_pmap_and_its_twin_end_in_the_same_bits():
    states = [train(model("device"), 4, BATCHES, backend) for backend in BACKENDS]
    jax.tree.map(np.testing.assert_array_equal, *states)


def test_bn_of_device_scope_sees_its_device_alone_and_averages_the_running_statistics():
    net = model("device")
    halves = np.split(BATCHES[:1], 2, axis=-1)
    both = train(net, 2, BATCHES[:1], pad=0, flip=False)
    apart = [train(net, 1, half, pad=0, flip=False) for half in halves]
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *(state.batch_stats for state in apart))
    assert_close(both.batch_stats, mean, 2e-5)
    whole = train(model("global"), 2, BATCHES[:1], pad=0, flip=False)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_close(both.batch_stats, whole.batch_stats, 2e-5)


def test_a_step_follows_the_gradient_of_the_mean_loss():
    net = model()
    state = host_state(net)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    index = BATCHES[0, 0]
    image = normalize(jnp.asarray(IMAGES[index]), MEAN)

    def loss(params):
        with_params = {**variables, "params": params}
        apply = functools.partial(net.apply, train=True, mutable=["batch_stats"])
        # An axis of one device, for the synchronised BN.
        logits = jax.vmap(lambda x: apply(with_params, x)[0], axis_name=DATA_AXIS)(image[None])[0]
        return metrics.cross_entropy(logits, LABELS[index]).mean()

    value, grads = jax.jit(jax.value_and_grad(loss))(state.params)
    expected = jax.tree.map(lambda w, g: w - 0.1 * (g + 1e-4 * w), state.params, grads)
    after = train(net, 4, BATCHES[:1], pad=0, flip=False)
    assert_close(after.params, expected, 2e-5)
    assert after.totals.loss / 8 == pytest.approx(float(value), rel=1e-5)
    assert (after.step, after.totals.images) == (1, 8)


def test_several_steps_a_dispatch_are_the_single_steps():
    batches = np.random.RandomState(3).randint(0, 24, (4, 8))
    # 2e-5: a loop's body is compiled on its own and may round otherwise.
    assert_close(train(model(), 2, batches[None]), train(model(), 2, batches[:, None]), 2e-5)


def test_totals_begin_anew_after_each_multiple_of_log_every():
    batches = np.random.RandomState(3).randint(0, 24, (5, 1, 8))
    counted = [
        int(train(model(), 2, batches[:n], log_every=2).totals.images) for n in (1, 2, 3, 4, 5)
    ]
    assert counted == [8, 16, 8, 16, 8]


def test_augmentation_depends_on_the_seed_and_the_step():
    net = model()
    same = np.tile(np.arange(4), (1, 1, 2))  # Each image twice in the batch.

    def loss(seed, step):
        devices = Devices("pmap", jax.devices()[:2])
        mapped = mapped_steps(net, devices, pad=2)
        state = host_state(net).replace(seed=np.uint32(seed), step=np.int32(step))
        data = devices.replicate(steps.Images(IMAGES, LABELS))
        out = mapped(devices.replicate(state), data, devices.shard(same[0].astype(np.int32)))
        return float(out.totals.loss)

    losses = [loss(0, 1), loss(0, 2), loss(1, 1)]
    assert len(set(losses)) == 3
    assert loss(0, 1) == losses[0]


class Small(nn.Module):
    """A network of each kind of layer, compiled in a second."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train)(nn.Conv(2, (3, 3))(x))
        return nn.Dense(10)(x.mean((1, 2)))


def test_variables_are_dicts_whatever_flax_is_told(monkeypatch):
    monkeypatch.setitem(flax.config._values, "flax_return_frozendict", True)
    state = steps.init_state(Small(), OPTIMIZER, np.uint32(0), MEAN)
    assert type(state.params) is dict


def test_settings_of_jax_and_flax_change_no_bit(monkeypatch):
    def everything():
        draws = jax.jit(lambda: draw(bits.key(3), pad=4))()
        return jax.device_get(draws), train(Small(), 1, BATCHES[:1], "shard_map", optimized=True)

    expected = everything()
    monkeypatch.setitem(flax.config._values, "flax_fix_rng_separator", True)
    jax.config.update("jax_random_seed_offset", 5)
    try:
        with (
            jax.default_prng_impl("rbg"),
            jax.threefry_partitionable(False),
            jax.enable_x64(True),
            jax.numpy_dtype_promotion("strict"),
        ):
            jax.tree.map(np.testing.assert_array_equal, everything(), expected)
    finally:
        jax.config.update("jax_random_seed_offset", 0)
    # Those of JAX as it comes: what was recorded years ago goes on.
    keys = (jax.random.key_data(make(3)) for make in (bits.key, jax.random.key))
    np.testing.assert_array_equal(*keys)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_statistics_and_totals_are_one_all_reduce(backend):
    devices = Devices(backend, jax.devices()[:2])
    net = model(scope="device")
    data, state = devices.replicate((steps.Images(IMAGES, LABELS), host_state(net)))
    mapped = mapped_steps(net, devices)
    program = mapped.lower(state, data, devices.shard(np.zeros((3, 8), np.int32))).compile()
    assert len(re.findall(r" all-reduce(?:-start)?\(", program.as_text())) == 1
