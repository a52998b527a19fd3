import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_flax.errors import UserError
from resnet_flax.runtime.parallel import DATA_AXIS, Devices, check_divisible, open_devices

BACKENDS = ["pmap", "shard_map"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("count", [1, 2, 4])
def test_each_device_gets_its_share_in_order_and_the_result_has_no_device_axis(backend, count):
    devices = Devices(backend, jax.devices()[:count])

    def step(state, batch):  # [2, 8/count]
        assert batch.shape == (2, 8 // count)
        place = jax.lax.axis_index(DATA_AXIS)
        return state + jax.lax.psum((place + 1) * batch.sum(), DATA_AXIS)

    mapped = devices.map(step, sharded=(False, True))
    batch = np.arange(16, dtype=np.float32).reshape(2, 8)
    shares = np.split(batch, count, axis=1)
    expected = 100 + sum((i + 1) * share.sum() for i, share in enumerate(shares))
    out = mapped(devices.replicate(np.float32(100)), devices.shard(batch))
    assert out.shape == ()
    assert out == expected


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_mean_of_gradients_is_a_mean_and_not_a_sum(backend):
    devices = Devices(backend)

    def step(w, x):
        return jax.lax.pmean(jax.grad(lambda w: (w * x).mean())(w), DATA_AXIS)

    grads = devices.map(step, (False, True))(
        devices.replicate(np.float32(1)), devices.shard(np.full(8, 3.0, np.float32))
    )
    assert grads == 3.0


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_same_step_on_the_same_devices_is_not_compiled_again(backend):
    devices = Devices(backend)
    traced = []

    def step(state, x, times):
        traced.append(1)
        return state + jax.lax.psum(x.sum(), DATA_AXIS) * times

    mapped = devices.map(step, (False, True), donate=0, times=1)
    state = devices.replicate(np.float32(0))
    state = mapped(state, devices.shard(np.ones(4, np.float32)))
    compiled = len(traced)
    for _ in range(3):
        mapped = Devices(backend).map(step, [False, True], donate=0, times=1)
        state = mapped(state, devices.shard(np.ones(4, np.float32)))
    assert len(traced) == compiled
    assert state == 16
    other = Devices(backend).map(step, (False, True), donate=0, times=2)
    assert other(state, devices.shard(np.ones(4, np.float32))) == 24
    two = Devices(backend, jax.devices()[:2])
    mapped = two.map(step, (False, True), donate=0, times=1)
    assert mapped(two.replicate(np.float32(0)), two.shard(np.ones(4, np.float32))) == 4


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("library", [np, jnp])
def test_a_donated_state_is_gone_and_its_source_is_not(library, backend):
    devices = Devices(backend)
    source = library.arange(3, dtype=np.float32)
    first = devices.replicate(source)
    devices.map(lambda s, x: s + 1, (False, True), donate=0)(first, devices.shard(np.ones(4)))
    assert first.is_deleted()
    np.testing.assert_array_equal(source, [0, 1, 2])


@pytest.mark.parametrize(
    "batch_size, nearest", [(102, "100 and 104"), (3, "4 and 8"), (0, "4 and 8"), (-4, "4 and 8")]
)
def test_a_batch_that_does_not_divide_is_refused_with_the_nearest_that_do(batch_size, nearest):
    with pytest.raises(UserError, match=rf"data.batch_size.* 4, got {batch_size}.*{nearest}"):
        check_divisible(batch_size, 4)
    check_divisible(8, 4)


def test_another_backend_is_refused_in_words():
    with pytest.raises(UserError, match="pmap.*shard_map.*got 'pjit'"):
        Devices("pjit")


@pytest.mark.parametrize(
    "raised, reason",
    [
        (AssertionError(), "JAX_PLATFORMS='cuda'. Give JAX_PLATFORMS=cpu"),
        (RuntimeError("Unable.\nAt length"), r"'cuda' \(RuntimeError: Unable.\). Give"),
    ],
)
def test_where_there_is_no_device_of_a_platform_one_line_says_so(monkeypatch, raised, reason):
    def none():
        raise raised

    monkeypatch.setattr(jax, "local_devices", none)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    with pytest.raises(UserError, match=reason):
        open_devices()
