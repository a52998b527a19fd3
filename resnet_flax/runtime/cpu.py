"""How a CPU's cores are used; to be set before the first use of a device.

These are defaults: JAX_NUM_CPU_DEVICES and XLA_FLAGS win where they are set. On another platform
they change nothing.
"""

import os

from resnet_flax.errors import UserError

# Sec. 4.2 trains batches of 128 on two GPUs: batch normalisation sees no fewer images by default.
SMALLEST_SHARE = 64
DEVICES = "JAX_NUM_CPU_DEVICES"
WORKERS = "RESNET_FLAX_WORKERS"
_DEVICES_FLAG = "--xla_force_host_platform_device_count"
# XLA otherwise drops the barriers of `models/cpu_convolution.py`.
_BARRIERS = "--xla_disable_hlo_passes"


def cores() -> int:
    """Those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def check_count() -> None:
    """Raises UserError unless JAX_NUM_CPU_DEVICES is a number of devices, if it is set."""
    given = os.environ.get(DEVICES, "1")
    if not given.isdecimal() or not int(given):
        raise UserError(f"Expected {DEVICES} to be 1 or more, or not set, got {given!r}.")


def use_cores(batch_size: int | None) -> None:
    """Makes a virtual device of each core.

    `batch_size`: of training; the devices then have equal shares of it, of SMALLEST_SHARE images or
    more. None: nothing is trained.
    """
    import jax  # Not above: a report's entry point has none.

    if DEVICES not in os.environ and _DEVICES_FLAG not in os.environ.get("XLA_FLAGS", ""):
        count = cores()
        if batch_size is not None:
            most = max(min(count, batch_size // SMALLEST_SHARE), 1)
            count = max(n for n in range(1, most + 1) if batch_size % n == 0)
        jax.config.update("jax_num_cpu_devices", count)


def keep_barriers() -> None:
    """Keeps `lax.optimization_barrier` in compiled programs."""
    flags = os.environ.get("XLA_FLAGS", "")
    if _BARRIERS not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {_BARRIERS}=cse_barrier_expander".strip()


def quick_compilation() -> dict[str, int]:
    """`jax.jit`'s options for what runs once: on a CPU, less than half the time to compile."""
    import jax

    return {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else {}


def workers(batches: int) -> int:
    """How many processes to use for so many batches. Raises UserError if WORKERS is no number."""
    given = os.environ.get(WORKERS) or str(cores())
    if not given.isdecimal() or not int(given):
        raise UserError(f"Expected {WORKERS} to be a number of processes, 1 or more, got {given}.")
    return max(min(int(given), batches), 1)
