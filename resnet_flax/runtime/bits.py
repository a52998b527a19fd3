"""Protects a run's bits from settings of JAX and Flax that would change them silently.

A run is a function of (config, seed, step). Settings from environment variables or a notebook must
not change it.
"""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import flax
import jax
import jax.numpy as jnp

# These change rounding. The user may choose them, and `environment.json` records them.
_ROUNDING = (
    "jax_default_matmul_precision",
    "jax_disable_jit",
    "jax_disable_most_optimizations",
    "jax_exec_time_optimization_effort",
    "jax_optimization_level",
)
_COMPILERS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "NVIDIA_TF32_OVERRIDE")


def key(seed: Any) -> jax.Array:
    """Makes the Threefry key from which all randomness of a run on devices comes.

    `seed`: [] uint32. The key equals `jax.random.key(seed)` under JAX's default settings, whatever
    the settings are.
    """
    data = jnp.stack([jnp.uint32(0), jnp.asarray(seed, jnp.uint32)])
    return jax.random.wrap_key_data(data, impl="threefry2x32")


@contextlib.contextmanager
def pinned() -> Iterator[None]:
    """A context, or decorator, with the settings of JAX and Flax that define a run.

    They also apply to functions that are traced inside it.
    """
    with contextlib.ExitStack() as stack:
        # If a later JAX lacks this setting, it is always on there.
        partitionable = getattr(jax, "threefry_partitionable", contextlib.nullcontext)
        stack.enter_context(partitionable(True))
        stack.enter_context(jax.enable_x64(False))
        stack.enter_context(jax.numpy_dtype_promotion("standard"))
        # This setting changes how the names of parameters enter their keys.
        stack.enter_context(flax.config.temp_flip_flag("fix_rng_separator", False))
        # With this one, variables are no dicts, which the code takes apart.
        stack.enter_context(flax.config.temp_flip_flag("return_frozendict", False))
        yield


def settings() -> dict[str, Any]:
    """Other settings that may change the last bits: name -> value. No unset ones, no paths."""
    found = {name: getattr(jax.config, name, None) for name in _ROUNDING}
    for name in _COMPILERS:
        flags = os.environ.get(name, "").split()
        found[name] = " ".join(flag for flag in flags if "/" not in flag)
    unset = (None, "", False, "UNKNOWN")  # The last is JAX's default level.
    return {name: value for name, value in found.items() if value not in unset}
