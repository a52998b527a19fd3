"""Times one convolution and both its gradients: ours against `nn.Conv`, in one process."""

import functools
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from resnet_flax.models import blocks
from resnet_flax.models.cpu_convolution import conv_general_dilated
from resnet_flax.runtime import cpu
from resnet_flax.runtime.parallel import DATA_AXIS

BATCH = 128
# (pixels a side, input channels, output channels, kernel, stride)
GRID = [
    *((size, 16, 16, 3, 1) for size in (32, 28, 8, 7)),
    *((size, 32, 32, 3, 1) for size in (16, 14, 4)),
    *((size, 64, 64, 3, 1) for size in (56, 8, 7, 2)),
    *((size, 16, 32, 3, 2) for size in (32, 28, 8)),
    *((size, 32, 64, 3, 2) for size in (16, 14, 4)),
    (32, 3, 16, 3, 1),
    (8, 1, 16, 3, 1),
    (224, 3, 64, 7, 2),
    (32, 16, 32, 1, 2),
    (56, 64, 256, 1, 1),
    (14, 256, 256, 3, 1),
    (7, 512, 512, 3, 1),
    (14, 1024, 256, 1, 1),
]


def measure(rounds: int) -> Iterator[dict[str, Any]]:
    """Medians of alternating calls, in ms. Images above 50 pixels get an eighth of the batch."""
    cpu.use_cores(BATCH)
    for size, inputs, outputs, kernel, stride in GRID:
        batch = BATCH // 8 if size > 50 else BATCH
        x = jax.random.normal(jax.random.key(0), (batch, size, size, inputs))
        theirs = blocks.conv(outputs, kernel, stride, use_bias=False)
        ours = theirs.clone(conv_general_dilated=conv_general_dilated)
        variables = theirs.init(jax.random.key(1), x)
        # Each as it is used: ours with a device on each core, `nn.Conv` on one device of all cores.
        step = jax.pmap(_gradients(ours, DATA_AXIS), axis_name=DATA_AXIS, in_axes=(None, 0))
        shares = jnp.stack(jnp.split(x, jax.device_count()))
        plain = jax.jit(_gradients(theirs, None))
        programs = [
            functools.partial(step, variables, shares),
            functools.partial(plain, variables, x),
        ]
        for run in programs:
            jax.block_until_ready(run())
        times: list[list[float]] = [[], []]
        for _, (run, seconds) in itertools.product(
            range(rounds), zip(programs, times, strict=True)
        ):
            start = time.perf_counter()
            for _ in range(5):
                jax.block_until_ready(run())
            seconds.append((time.perf_counter() - start) / 5)
        mine, flax = (statistics.median(seconds) * 1000 for seconds in times)
        shape = {"batch": batch, "size": size, "inputs": inputs, "outputs": outputs}
        row = {**shape, "kernel": kernel, "stride": stride, "ours_ms": mine, "flax_ms": flax}
        yield row | {"ratio": flax / mine, "runs": rounds}


def _gradients(module: nn.Module, axis: str | None) -> Callable[..., Any]:
    def weighted_sum(variables: Any, x: jax.Array) -> jax.Array:
        y: Any = module.apply(variables, x)
        return jnp.vdot(y, jnp.cos(y))

    def gradients(variables: Any, x: jax.Array) -> Any:
        dkernel, dx = jax.grad(weighted_sum, argnums=(0, 1))(variables, x)
        return (jax.lax.psum(dkernel, axis) if axis else dkernel), dx

    return gradients
