"""Settings for the cores of a CPU. Set them before the first use of a device.

They are defaults: JAX_NUM_CPU_DEVICES and XLA_FLAGS take precedence. On other platforms they have
no effect.
"""

import importlib.util
import os
from importlib import metadata
from pathlib import Path

from resnet_flax.errors import UserError

# Sec. 4.2 trains batches of 128 on two GPUs. By default, BN never sees fewer images than there.
SMALLEST_SHARE = 64
DEVICES = "JAX_NUM_CPU_DEVICES"
WORKERS = "RESNET_FLAX_WORKERS"
_DEVICES_FLAG = "--xla_force_host_platform_device_count"
# Without this flag, XLA drops the barriers of `models/cpu_convolution.py`.
_DISABLED = "--xla_disable_hlo_passes"
_BARRIERS = f"{_DISABLED}=cse_barrier_expander"
_DEV = Path("/dev")
_NVIDIA_OR_TPU = ("nvidia[0-9]*", "accel[0-9]*", "vfio/[0-9]*")
# Also AMD's GPUs, and any GPU under WSL.
_ACCELERATORS = (*_NVIDIA_OR_TPU, "kfd", "dxg")


def cores() -> int:
    """The number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def check_count() -> None:
    """Raises UserError if JAX_NUM_CPU_DEVICES is set, but not to a number of devices."""
    given = os.environ.get(DEVICES, "1")
    if not given.isdecimal() or not int(given):
        raise UserError(f"Expected {DEVICES} to be 1 or more, or not set, got {given!r}.")


def use_cores(batch_size: int) -> None:
    """Makes virtual CPU devices, at most one for each core.

    They get equal shares, of SMALLEST_SHARE images or more, of a batch.
    """
    import jax  # Not at the top: commands that report need no JAX.

    if DEVICES not in os.environ and _DEVICES_FLAG not in os.environ.get("XLA_FLAGS", ""):
        most = max(min(cores(), batch_size // SMALLEST_SHARE), 1)
        count = max(n for n in range(1, most + 1) if batch_size % n == 0)
        jax.config.update("jax_num_cpu_devices", count)


def keep_barriers() -> None:
    """Keeps `lax.optimization_barrier` in programs for the CPU.

    XLA reads the flag once, and for every platform. Its compiler for GPUs refuses a program that
    keeps a barrier, such as one with `model.remat`. So a process that will use a GPU or TPU goes
    without the flag. It also drops one that Slurm or Ray brought from a machine without devices.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if expects_accelerator():
        if _BARRIERS in flags.split():
            rest = (flag for flag in flags.split() if flag != _BARRIERS)
            os.environ["XLA_FLAGS"] = " ".join(rest)
    elif _DISABLED not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {_BARRIERS}".strip()


def expects_accelerator() -> bool:
    """Whether jax will choose another device than the CPU. It opens none: that would be too early.

    Without JAX_PLATFORMS, jax needs a plug-in for the device, and the device.
    """
    if platforms := os.environ.get("JAX_PLATFORMS", ""):
        return platforms.split(",")[0] != "cpu"
    plugins = metadata.entry_points(group="jax_plugins") or importlib.util.find_spec("libtpu")
    return bool(plugins) and any(any(_DEV.glob(device)) for device in _ACCELERATORS)


def nvidia_or_tpu() -> Path | None:
    """The file of an NVIDIA GPU or a TPU of this machine. It may work or not."""
    return next((file for name in _NVIDIA_OR_TPU for file in sorted(_DEV.glob(name))), None)


def quick_compilation() -> dict[str, int]:
    """Options of `jax.jit` for code that runs once. On a CPU they more than halve compile time."""
    import jax

    return {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else {}


def workers(batches: int) -> int:
    """The number of processes for so many batches. Raises UserError if WORKERS is not a number."""
    given = os.environ.get(WORKERS) or str(cores())
    if not given.isdecimal() or not int(given):
        raise UserError(f"Expected {WORKERS} to be a number of processes, 1 or more, got {given}.")
    return max(min(int(given), batches), 1)
