"""Keeps a run's bits apart from settings of JAX and Flax that would change them without a word.

A run is a function of (config, seed, step). Where a setting comes from, an environment variable or
a notebook, makes no difference.
"""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import flax
import jax
import jax.numpy as jnp

# These change rounding, and are a user's to choose: `environment.json` has them.
_ROUNDING = (
    "jax_default_matmul_precision",
    "jax_disable_jit",
    "jax_disable_most_optimizations",
    "jax_exec_time_optimization_effort",
    "jax_optimization_level",
)
_COMPILERS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "NVIDIA_TF32_OVERRIDE")


def key(seed: Any) -> jax.Array:
    """The root of a run's randomness on devices, from its seed, [] uint32: a Threefry key.

    `jax.random.key(seed)` with JAX's default settings, which are not asked for.
    """
    data = jnp.stack([jnp.uint32(0), jnp.asarray(seed, jnp.uint32)])
    return jax.random.wrap_key_data(data, impl="threefry2x32")


@contextlib.contextmanager
def pinned() -> Iterator[None]:
    """Within it, and in what is traced within it, settings are those that a run is defined by.

    So is the function that it decorates.
    """
    with contextlib.ExitStack() as stack:
        # Always so, should JAX no longer have the setting.
        partitionable = getattr(jax, "threefry_partitionable", contextlib.nullcontext)
        stack.enter_context(partitionable(True))
        stack.enter_context(jax.enable_x64(False))
        stack.enter_context(jax.numpy_dtype_promotion("standard"))
        # How the names of parameters enter their keys.
        stack.enter_context(flax.config.temp_flip_flag("fix_rng_separator", False))
        yield


def settings() -> dict[str, Any]:
    """What may still change the last bits: name -> value, where it has one; no paths."""
    found = {name: getattr(jax.config, name, None) for name in _ROUNDING}
    for name in _COMPILERS:
        flags = os.environ.get(name, "").split()
        found[name] = " ".join(flag for flag in flags if "/" not in flag)
    unset = (None, "", False, "UNKNOWN")  # The last is JAX's default level.
    return {name: value for name, value in found.items() if value not in unset}
