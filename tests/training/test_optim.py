import jax
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


def test_lars_steps_by_the_norm_of_each_kernel_also_in_a_stack():
    optimizer = optim.sgd(lambda _: 0.1, momentum=0.0, weight_decay=0.0, layerwise=True)
    kernels = jnp.array([[3.0, 4.0], [0.6, 0.8]])
    params = {
        "stage1_blocks": {"kernel": kernels},
        "fc": {"kernel": kernels[0], "bias": kernels[0]},
    }
    grad = jnp.array([[0.0, 7.0], [-2.0, 0.0]])
    grads = {"stage1_blocks": {"kernel": grad}, "fc": {"kernel": grad[0], "bias": grad[0]}}
    after = take_steps(optimizer, params, [grads])
    # w - 0.1 |w| g / |g|; a bias moves by 0.1 g. 1e-6: float32.
    np.testing.assert_allclose(after["stage1_blocks"]["kernel"], [[3, 3.5], [0.7, 0.8]], rtol=1e-6)
    np.testing.assert_allclose(after["fc"]["kernel"], [3, 3.5], rtol=1e-6)
    np.testing.assert_allclose(after["fc"]["bias"], [3, 3.3], rtol=1e-6)


def test_lars_is_that_of_optax_where_no_kernel_is_in_a_stack():
    ours = optim.sgd(lambda _: 0.1, nesterov=True, weight_decay=0.01, layerwise=True)
    theirs = optax.lars(0.1, 0.01, trust_coefficient=1.0, momentum=0.9, nesterov=True)
    params = {"kernel": jnp.array([3.0, 4.0])}
    grads = [{"kernel": jnp.array([1.0, 2.0])}, {"kernel": jnp.array([-1.0, 3.0])}]
    after = [take_steps(optimizer, params, grads)["kernel"] for optimizer in (ours, theirs)]
    np.testing.assert_allclose(*after, rtol=1e-6)


def test_the_first_step_of_adam_is_the_rate_in_each_direction():
    optimizer = optim.adam(lambda _: 0.1, weight_decay=0.5)
    params = {"kernel": jnp.array([1.0, -1.0])}
    after = take_steps(optimizer, params, [{"kernel": jnp.array([-0.4, 0.3])}])
    # The gradients with decay are 0.1 and -0.2. 1e-5: epsilon.
    np.testing.assert_allclose(after["kernel"], [0.9, -0.9], rtol=1e-5)


def test_clipping_shortens_the_gradient_of_all_parameters_together():
    optimizer = optim.with_clipping(optim.sgd(lambda _: 1.0, momentum=0.0, weight_decay=0.0), 1.0)
    params = {"fc": {"kernel": jnp.array(0.0), "bias": jnp.array(0.0)}}
    long = take_steps(
        optimizer, params, [{"fc": {"kernel": jnp.array(3.0), "bias": jnp.array(4.0)}}]
    )
    assert long["fc"] == pytest.approx({"kernel": -0.6, "bias": -0.8}, rel=1e-6)
    short = take_steps(
        optimizer, params, [{"fc": {"kernel": jnp.array(0.3), "bias": jnp.array(0.4)}}]
    )
    assert short["fc"] == pytest.approx({"kernel": -0.3, "bias": -0.4}, rel=1e-6)


def test_the_gradient_of_a_frozen_part_does_not_clip_the_others():
    params = {"conv": {"kernel": jnp.array(0.0)}, "fc": {"kernel": jnp.array(0.0)}}
    grads = [{"conv": {"kernel": jnp.array(1e6)}, "fc": {"kernel": jnp.array(0.5)}}]
    plain = optim.sgd(lambda _: 1.0, momentum=0.0, weight_decay=0.0)
    optimizer = optim.with_frozen(optim.with_clipping(plain, 1.0, ("stem",)), ("stem",))
    after = take_steps(optimizer, params, grads)
    assert (after["conv"]["kernel"], after["fc"]["kernel"]) == (0, -0.5)


def test_frozen_parts_stay_and_others_move_as_without_them():
    params = {
        name: {"kernel": jnp.array(1.0)}
        for name in ("conv", "stage1_block1", "stage2_blocks", "fc")
    }
    grads = [jax.tree.map(jnp.ones_like, params)] * 2
    free = take_steps(optim.sgd(lambda _: 0.1), params, grads)
    frozen = optim.with_frozen(optim.sgd(lambda _: 0.1), ("stem", "stage2"))
    after = take_steps(frozen, params, grads)
    assert after == {
        name: params[name] if name in ("conv", "stage2_blocks") else free[name] for name in params
    }


def test_factors_multiply_the_gradients_of_their_block_alone():
    optimizer = optim.with_factors(optim.sgd(lambda _: 1.0, momentum=0.0, weight_decay=0.0))
    params = {"stage1_blocks": {"kernel": jnp.zeros((2, 3))}, "fc": {"kernel": jnp.zeros(3)}}
    state = optimizer.init(params)
    factors = {
        "stage1_blocks": {"kernel": jnp.array([[2.0], [3.0]])},
        "fc": {"kernel": jnp.ones(1)},
    }
    assert jax.tree.map(jnp.shape, state[0].factors) == jax.tree.map(jnp.shape, factors)
    state = optim.set_factors(state, lambda _: factors)
    updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, params), state, params)
    np.testing.assert_array_equal(updates["stage1_blocks"]["kernel"], [[-2] * 3, [-3] * 3])
    np.testing.assert_array_equal(updates["fc"]["kernel"], [-1] * 3)
