import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from resnet_flax.models import cpu_convolution
from resnet_flax.models.cpu_convolution import conv_general_dilated

# Both sides of the switch to a matrix product, even and odd, square and not, one pixel.
SIZES = [(8, 8), (7, 9), (2, 3), (1, 1)]
# The networks' own (kernel, stride, padding), and two of other padding.
KINDS = [(1, 1, 0), (1, 2, 0), (3, 1, 1), (3, 2, 1), (7, 2, 3), (5, 2, 3), (3, 1, 2)]


# On both sides of PAIRED_CHANNELS, and the weight gradient in parts or whole.
PARTS = [(5, cpu_convolution.CHUNK_BYTES), (17, 1)]
# A quarter of all: of each kind, two sizes and both parts; `make slow` has the rest.
CASES = [
    pytest.param(size, part, kind, marks=() if (i + j + 2 * k) % 4 == 0 else pytest.mark.slow)
    for i, size in enumerate(SIZES)
    for j, kind in enumerate(KINDS)
    for k, part in enumerate(PARTS)
]


@pytest.mark.parametrize("size, part, kind", CASES)
def test_values_and_gradients_are_those_of_flaxs_convolution(monkeypatch, size, part, kind):
    (features, chunk_bytes), (kernel, stride, padding) = part, kind
    monkeypatch.setattr(cpu_convolution, "CHUNK_BYTES", chunk_bytes)
    with jax.enable_x64():
        # 6 images are two chunks of 3.
        x = jax.random.normal(jax.random.key(0), (6, *size, 4), jnp.float64)
        theirs = nn.Conv(features, (kernel, kernel), stride, padding, param_dtype=jnp.float64)
        ours = theirs.clone(conv_general_dilated=conv_general_dilated)
        variables = theirs.init(jax.random.key(1), x)
        weights = jax.random.normal(jax.random.key(2), theirs.apply(variables, x).shape)

        def value_and_gradients(conv):
            def weighted_sum(variables, x):
                y = conv.apply(variables, x)
                return jnp.sum(weights * jnp.sin(y)), y

            gradients = jax.value_and_grad(weighted_sum, argnums=(0, 1), has_aux=True)
            return jax.jit(gradients)(variables, x)

        # 1e-12: float64 sums of at most a few hundred terms in another order.
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12),
            value_and_gradients(ours),
            value_and_gradients(theirs),
        )


@pytest.mark.parametrize(
    "fields",
    [
        {"strides": (1, 2)},
        {"padding": ((0, 1), (1, 1))},
        {"kernel_size": (3, 1)},
        {"kernel_dilation": 2},
        {"feature_group_count": 2},
    ],
)
def test_what_it_does_not_compute_xlas_own_convolution_does(fields):
    theirs = nn.Conv(4, **{"kernel_size": (3, 3), "padding": 1} | fields)
    ours = theirs.clone(conv_general_dilated=conv_general_dilated)
    x = jax.random.normal(jax.random.key(0), (2, 3, 3, 4))  # Small enough for a matrix product.
    variables = ours.init(jax.random.key(1), x)

    def gradient(conv):
        return jax.grad(lambda variables, x: jnp.sum(conv.apply(variables, x) ** 2), (0, 1))

    jax.tree.map(
        np.testing.assert_array_equal,
        gradient(ours)(variables, x),
        gradient(theirs)(variables, x),
    )
