"""Checks training on this machine's devices: against its CPU, and after a kill.

This process opens no device itself but the CPU: a TPU has one process.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax

from experiments import soak
from resnet_flax.errors import FaultError
from resnet_flax.runtime import interrupt
from resnet_flax.storage.checkpoints import Checkpoints
from resnet_flax.storage.run_folder import RunFolder

# Relative, of the mean loss over the first steps. Sums in another order change float32 by 1e-5.
TOLERANCE = 1e-3
_BATCH = 128  # Or a little less, if the devices cannot share it.
_FLAGS = (
    "--num_processes=1",  # On a TPU host, jax would have them meet.
    "--config=configs/digits.py:resnet8", "--config.steps=200", "--config.log_every=20",
    "--config.eval_every=100", "--config.checkpoint_every=40", "--config.steps_per_dispatch=20",
    "--config.optim.boundaries=(100,150)", "--config.model.bn_scope=global",
    "--config.model.widths=(4,8,8)",
)  # fmt: skip
# Products in full float32, so that only the order of sums may differ.
_PRECISE = {"JAX_DEFAULT_MATMUL_PRECISION": "highest"}
_REPEATABLE = "--xla_gpu_deterministic_ops=true"  # Without it, a GPU may add in any order.


def check(folder: Path, seconds: float, platform: str, count: int) -> dict[str, Any]:
    """Trains a small network on the CPU, on the devices, and on the devices with a kill.

    The kill comes after the first checkpoint. Raises FaultError if a run fails or `seconds` are
    over.

    - `folder`: a new folder on a disk.
    - `platform`, `count`: of the devices.
    """
    batch_size = max(_BATCH // count, 1) * count

    def start(name: str, variables: dict[str, str]) -> None:
        with interrupt.held():
            runs[name] = _start(folder / name, batch_size, variables)

    flags = os.environ.get("XLA_FLAGS", "")
    of_devices = {"XLA_FLAGS": f"{flags} {_REPEATABLE}".strip()} if platform == "gpu" else {}
    jax.config.update("jax_platforms", "cpu")
    end = time.monotonic() + seconds
    runs: dict[str, subprocess.Popen[bytes]] = {}
    try:
        start("cpu", {"JAX_PLATFORMS": "cpu"})
        start("whole", of_devices)
        _finish(runs["whole"], end)
        start("killed", of_devices)
        killed = RunFolder(folder / "killed")
        while runs["killed"].poll() is None and not _saved(killed) and time.monotonic() < end:
            time.sleep(0.0005)
        was_killed = runs["killed"].poll() is None
        runs["killed"].send_signal(signal.SIGKILL)
        runs["killed"].wait()
        saved = _saved(killed)
        start("killed", of_devices)
        for process in runs.values():
            _finish(process, end)
    finally:
        for process in runs.values():
            process.kill()
            process.wait()
    cpu, device = (_first_loss(folder / name) for name in ("cpu", "whole"))
    differing = soak.mismatches(folder / "whole", folder / "killed")
    difference = abs(device - cpu) / cpu
    return {
        "loss_on_cpu": cpu,
        "loss_on_device": device,
        "relative_difference": difference,
        "agrees": difference <= TOLERANCE,
        "was_killed": was_killed,
        "resumed_from_step": saved[-1] if saved else 0,
        "resumes_in_the_same_bits": not differing,
        "differing": differing[:5],
    }


def _saved(folder: RunFolder) -> list[int]:
    """The steps of whole checkpoints."""
    return Checkpoints(folder.checkpoints).steps()


def _start(folder: Path, batch_size: int, variables: dict[str, str]) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "experiments.train", f"--workdir={folder}", *_FLAGS]
    command.append(f"--config.data.batch_size={batch_size}")
    # None may take all of a GPU's memory.
    memory = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    environment = os.environ | _PRECISE | memory | variables
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)


def _finish(process: "subprocess.Popen[bytes]", end: float) -> None:
    try:
        if process.wait(max(0.1, end - time.monotonic())):
            raise FaultError(f"A run of the check ended with status {process.returncode}.")
    except subprocess.TimeoutExpired as error:
        raise FaultError("The check took longer than its time.") from error


def _first_loss(folder: Path) -> float:
    """The mean loss over the first steps."""
    record = RunFolder(folder).metrics()[0]
    loss = record["loss"]
    assert isinstance(loss, float)
    return loss
