import jax.numpy as jnp
import numpy as np
import optax
import pytest

from resnet_flax.training import optim


def test_the_rate_drops_at_each_boundary_as_in_section_4_2():
    rate = optim.learning_rate(0.1, (32_000, 48_000))
    rates = [rate(step) for step in (0, 31_999, 32_000, 47_999, 48_000, 63_999)]
    # 1e-6: float32.
    np.testing.assert_allclose(rates, [0.1, 0.1, 0.01, 0.01, 0.001, 0.001], rtol=1e-6)


def test_the_warm_up_ends_after_its_steps():
    rate = optim.learning_rate(0.1, (500,), warmup_steps=400, warmup_lr=0.01)
    rates = [rate(jnp.int32(step)) for step in (0, 399, 400, 499, 500)]
    np.testing.assert_allclose(rates, [0.01, 0.01, 0.1, 0.1, 0.01], rtol=1e-6)


def take_steps(optimizer, params, grads):
    state = optimizer.init(params)
    for grad in grads:
        updates, state = optimizer.update(grad, state, params)
        params = optax.apply_updates(params, updates)
    return params


def test_two_steps_are_those_worked_by_hand():
    optimizer = optim.sgd(lambda _: 0.5, momentum=0.9, weight_decay=0.1)
    params = take_steps(optimizer, {"kernel": jnp.array(1.0)}, [{"kernel": 2.0}, {"kernel": 3.0}])
    # v = 2 + 0.1*1 = 2.1, w = 1 - 1.05 = -0.05; v = 0.9*2.1 + 3 - 0.005 = 4.885, w = -2.4925.
    assert params["kernel"] == pytest.approx(-2.4925, rel=1e-6)


def test_nesterov_looks_ahead_only_when_asked():
    optimizer = optim.sgd(lambda _: 0.5, momentum=0.9, nesterov=True, weight_decay=0.0)
    params = take_steps(optimizer, {"kernel": jnp.array(1.0)}, [{"kernel": 2.0}])
    assert params["kernel"] == pytest.approx(1 - 0.5 * (0.9 * 2 + 2), rel=1e-6)


@pytest.mark.parametrize("covered", [True, False])
def test_the_field_decides_whether_decay_covers_bn_and_biases(covered):
    values = {"bn": {"scale": 1.0, "bias": 1.0}, "fc": {"kernel": 1.0, "bias": 1.0}}
    params = {module: {k: jnp.array(v) for k, v in p.items()} for module, p in values.items()}
    zero = {module: dict.fromkeys(p, 0.0) for module, p in params.items()}
    optimizer = optim.sgd(lambda _: 1.0, weight_decay=0.5, decay_bn_and_bias=covered)
    after = take_steps(optimizer, params, [zero])
    other = 0.5 if covered else 1.0
    assert after == {"bn": {"scale": other, "bias": other}, "fc": {"kernel": 0.5, "bias": other}}
