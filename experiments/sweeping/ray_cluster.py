"""Starts Ray on this machine for a sweep, or joins a cluster. Ray is an optional extra."""

import contextlib
import functools
import logging
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import ray
from ray._private.authentication import authentication_token_setup as authentication

from experiments.sweeping import ray_devices, ray_slices
from experiments.sweeping.engine import Engine
from resnet_flax.errors import FaultError, UserError, summary
from resnet_flax.runtime import cpu, environment
from resnet_flax.storage import filesystem

REACH_SECONDS = 5.0
OBJECT_STORE_BYTES = 100 * 2**20  # Only configs pass through it.
_CODE = Path(__file__).parents[2]
_FORWARDED = ("JAX_", "XLA_", "TFDS_", "RESNET_FLAX_")


@contextlib.contextmanager
def ray_engine(
    address: str,
    devices_per_run: int,
    runs_per_device: int,
    slice_kind: str,
    max_failures: int,
) -> Iterator[tuple[Engine, int]]:
    """Yields an engine and the number of devices of each run. Ray stops with the context.

    - `address`: HOST:PORT of a cluster; "": starts one with all devices of this machine.
    - `slice_kind`: the kind of TPU slice that each run takes whole, as for `ray_slices.parse`;
      "": each run takes `devices_per_run` devices of a node, or shares a GPU with
      `runs_per_device` - 1 others.
    - `max_failures`: how often a run that fails is tried again.

    Raises UserError if there is no such cluster, or if nothing in it is large enough.
    """
    # The accelerators are for the runs. This process leaves them alone.
    jax.config.update("jax_platforms", "cpu")
    with _connected(address):
        variables = _task_variables()
        if slice_kind:
            kind = ray_slices.parse(slice_kind, print)
            placement: ray_devices.Placement = ray_slices.Slices(kind, variables)
            devices_per_run = kind.chips()
        else:
            placement = ray_devices.Devices(devices_per_run, runs_per_device, variables)
            print(f"Each run takes {devices_per_run} of Ray's {placement.kind}s.")
            if runs_per_device > 1:
                print(f"{runs_per_device} runs share each of them.")
        yield functools.partial(ray_devices.run_on, placement, max_failures), devices_per_run


@contextlib.contextmanager
def _connected(address: str) -> Iterator[None]:
    # Ray sends no usage statistics.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    logging.getLogger("ray").setLevel(logging.CRITICAL)
    if address:
        _check_reachable(address)
        # Ray does so only for a cluster that it starts or finds by itself.
        authentication.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
        code = [str(_CODE / package) for package in ("experiments", "resnet_flax")]
        options: dict[str, Any] = {"runtime_env": {"py_modules": code, "excludes": ["results"]}}
    else:
        sizes = {"num_cpus": cpu.cores(), "object_store_memory": OBJECT_STORE_BYTES}
        options = {"include_dashboard": False, **sizes}
    try:
        with _quiet_stderr():
            ray.init(
                address or "local", log_to_driver=False, logging_level=logging.CRITICAL, **options
            )
    except (ConnectionError, RuntimeError) as error:
        if "InvalidAuthToken" not in repr(error.__cause__):
            where = f"the Ray cluster at {address}" if address else "Ray on this machine"
            raise FaultError(f"Cannot use {where}: {summary(error.__cause__ or error)}.") from error
        raise UserError(
            f"The cluster at {address} refused this user. Set RAY_AUTH_TOKEN to the token that the"
            " cluster was started with, or RAY_AUTH_TOKEN_PATH to a file with this token."
        ) from error
    # Ray prints pages when a process or a node dies. The engine prints one line instead.
    ray._private.worker.print_to_stdstream = lambda *args, **kwargs: None
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Silences stderr, also for Ray's C++ libraries, which warn of every failed attempt."""
    sys.stderr.flush()
    kept = os.dup(2)
    with Path(os.devnull).open("w") as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _check_reachable(address: str) -> None:
    """Raises UserError at once if nothing answers. Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), REACH_SECONDS):
            pass
    except (OSError, ValueError) as error:
        raise UserError(
            f"Expected --address=HOST:PORT of a Ray cluster, got {address}: {error}. Start one with"
            " `.venv/bin/ray start --head`. To use this machine, omit --address and RAY_ADDRESS."
        ) from error


def _task_variables() -> dict[str, str]:
    """Environment variables for every process of a sweep: some of this process, and the commit."""
    given = {name: os.environ[name] for name in os.environ if name.startswith(_FORWARDED)}
    if "TFDS_DATA_DIR" in given:
        given["TFDS_DATA_DIR"] = str(filesystem.path(given["TFDS_DATA_DIR"]))
    return {environment.COMMIT_VARIABLE: environment.git_commit() or ""} | given
