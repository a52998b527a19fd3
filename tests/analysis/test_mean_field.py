"""The theory of gradients, on cases known by hand and by simulation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_flax.analysis import mean_field
from resnet_flax.models import stacking
from resnet_flax.models.catalogue import build_resnet
from resnet_flax.training import part_by_part
from resnet_flax.training.steps import Batch


def test_a_layer_grows_gradients_as_yang_et_al_say():
    # 1e-3: the grid's step is 0.02.
    assert mean_field.layer_growth() == pytest.approx(np.pi / (np.pi - 1), rel=1e-3)
    assert mean_field.layer_growth(negative_slope=1.0) == pytest.approx(1, rel=1e-3)
    # With a large bias ReLU passes everything.
    assert mean_field.layer_growth(bn_bias=8.0) == pytest.approx(1, rel=1e-3)
    # Leaky ReLU: E[phi'^2] = (1 + a^2) / 2, Var = (1 + a^2) / 2 - (1 - a)^2 / (2 pi).
    a = 0.3
    expected = (1 + a**2) / (1 + a**2 - (1 - a) ** 2 / np.pi)
    assert mean_field.layer_growth(negative_slope=a) == pytest.approx(expected, rel=1e-3)


def test_plain_networks_multiply_the_growth_of_their_layers():
    ratio = mean_field.gradient_ratio((2, 2, 2), (4, 8, 16), shortcut_scale=0)
    assert ratio == pytest.approx(mean_field.layer_growth() ** 6, rel=1e-6)


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_a_linear_residual_block_has_a_closed_form(scale):
    # Slope 1: s = f + a x. A block multiplies the square by a^2 + 1 / Var[x], and Var[x] becomes
    # 1 + a^2 Var[x].
    ratio = mean_field.gradient_ratio((3,), (4,), scale, negative_slope=1.0)
    square, variance = 1.0, 1.0
    for _ in range(3):
        square *= scale**2 + 1 / variance
        variance = 1 + scale**2 * variance
    assert ratio == pytest.approx(np.sqrt(square), rel=1e-3)


def simulated_ratio(blocks, scale, width=256):
    """The gradient ratio of blocks of dense layers with BN, as many images as channels."""
    random = np.random.default_rng(0)

    def norm(z):
        deviation = z.std(axis=0)
        z = (z - z.mean(axis=0)) / deviation

        def back(g):
            return (g - g.mean(axis=0) - z * (g * z).mean(axis=0)) / deviation

        return z, back

    x, steps = np.maximum(random.standard_normal((width, width)), 0), []
    for _ in range(blocks):
        first, last = random.standard_normal((2, width, width)) * np.sqrt(2 / width)
        z, back_z = norm(x @ first)
        f, back_f = norm(np.maximum(z, 0) @ last)
        s = f + scale * x
        x = np.maximum(s, 0)
        steps.append((first, z, back_z, last, back_f, s))
    gradient = random.standard_normal(x.shape)
    norm_of_last = np.linalg.norm(gradient)
    for first, z, back_z, last, back_f, s in reversed(steps):
        of_s = gradient * (s > 0)
        of_z = back_f(of_s) @ last.T * (z > 0)
        gradient = scale * of_s + back_z(of_z) @ first.T
    return np.linalg.norm(gradient) / norm_of_last


@pytest.mark.parametrize(("blocks", "scale"), [(9, 1.0), (18, 1.0), (9, 0.5), (9, -1.0)])
def test_wide_dense_blocks_do_as_the_theory_says(blocks, scale):
    predicted = mean_field.gradient_ratio((blocks,), (4,), scale)
    # 10 %: 256 channels and images. One that took units for independent would be 20 % and more off.
    assert simulated_ratio(blocks, scale) == pytest.approx(predicted, rel=0.1)


@pytest.mark.parametrize(
    ("shortcut", "fields"),
    [
        ("none", {}),
        ("pad", {}),
        ("pad", {"shortcut_scale": 0.5}),
        ("none", {"negative_slope": 0.5}),
        ("none", {"bn_bias": 0.5}),
    ],
)
def test_networks_do_as_the_theory_says(shortcut, fields):
    widths = (16, 32, 64)
    net = build_resnet("cifar", 14, shortcut, widths, num_classes=10, **fields)
    image = jax.random.normal(jax.random.key(1), (32, 16, 16, 3))
    batch = Batch(image, jnp.arange(32) % 10)
    scanned = jax.jit(net.clone(scan=True).init)(jax.random.key(0), image[:1])  # It compiles fast.
    variables = stacking.unstack(scanned)
    _, of_inputs = part_by_part.gradients(part_by_part.parts_of(net), variables, batch)
    # To the last block: after it, the pool gives all places of an image one gradient.
    first, last = (part_by_part.norm(of_inputs[f"stage{k}_block{i}"]) for k, i in ((1, 1), (3, 2)))
    scale = fields.pop("shortcut_scale", 1.0) if shortcut == "pad" else 0.0
    predicted = mean_field.gradient_ratio((2, 2, 1), widths, scale, **fields)
    # 20 %: finite widths, batches and maps.
    assert first / last == pytest.approx(predicted, rel=0.2)


@pytest.mark.parametrize(
    ("shortcut", "fields"),
    [
        ("projection", {}),
        ("pad", {"block": "preactivation"}),
        ("pad", {"norm": "none"}),
        ("pad", {"zero_init_residual": True}),
        ("none", {"kernel_init": "looks_linear"}),
    ],
)
def test_no_ratio_is_predicted_for_networks_that_the_theory_does_not_cover(shortcut, fields):
    net = build_resnet("cifar", 14, shortcut, (4, 4, 8), num_classes=3, **fields)
    assert mean_field.predicted_ratio(net) is None


def test_the_predicted_ratio_is_that_of_the_networks_fields():
    fields = {"shortcut_scale": 0.5, "negative_slope": 0.1, "bn_bias": 0.2}
    net = build_resnet("cifar", 14, "pad", (4, 4, 8), num_classes=3, **fields)
    expected = mean_field.gradient_ratio((2, 2, 2), (4, 4, 8), 0.5, 0.1, 0.2)
    assert mean_field.predicted_ratio(net) == expected
    plain = build_resnet("cifar", 14, "none", (4, 4, 8), num_classes=3)
    assert mean_field.predicted_ratio(plain) == mean_field.gradient_ratio((2, 2, 2), (4, 4, 8), 0.0)


def test_a_large_bias_is_a_linear_network_or_beyond_the_theory():
    # ReLU passes all of z ~ N(20, 1). So a plain network is linear, and its ratio is 1.
    plain = mean_field.gradient_ratio((2, 2, 2), (4, 8, 16), 0.0, bn_bias=20.0)
    assert plain == pytest.approx(1, rel=1e-3)
    # s = f + x as in the closed form above; the bias changes no variance.
    residual = mean_field.gradient_ratio((3,), (4,), bn_bias=20.0)
    assert residual == pytest.approx(np.sqrt(2 * (1 + 1 / 2) * (1 + 1 / 3)), rel=1e-3)
    for bias in (-1e6, -60.0, -20.0, 200.0, 1e6):
        assert np.isnan(mean_field.gradient_ratio((2, 2, 2), (4, 8, 16), bn_bias=bias))
    for bias in (-5.0, 40.0):
        assert np.isfinite(mean_field.gradient_ratio((1, 1), (4, 8), bn_bias=bias))


@pytest.mark.parametrize("fields", [{"shortcut_scale": 2.0}, {"bn_bias": 1.0}])
def test_no_ratio_is_predicted_where_values_outgrow_the_theorys_grid(fields):
    blocks = (60, 60, 60)
    assert np.isnan(mean_field.gradient_ratio(blocks, (4, 4, 8), **fields))
    net = build_resnet("cifar", 6 * 60 + 2, "pad", (4, 4, 8), num_classes=3, **fields)
    assert mean_field.predicted_ratio(net) is None


def test_a_negative_shortcut_has_a_ratio():
    # ReLU of it is -phi: blocks grow less than with the identity, and more than without.
    plain, negative, whole = (
        mean_field.gradient_ratio((2, 2, 2), (4, 4, 8), scale) for scale in (0.0, -1.0, 1.0)
    )
    assert np.isfinite(negative) and negative not in (plain, whole)
