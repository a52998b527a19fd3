"""The processes and the devices that train a run together."""

import contextlib
import math
from collections.abc import Iterator, Mapping

from absl import flags

from resnet_flax.config import RunConfig
from resnet_flax.runtime import cpu, hosts

_MEMORY = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")  # Never both.
_GPU_MEMORY = 0.9  # The share of a GPU's memory for all its processes together.


@contextlib.contextmanager
def together(args: flags.FlagValues) -> Iterator[None]:
    """Joins the other processes that the flags name, until the context ends."""
    peers = args.coordinator, args.num_processes, args.process_id, args.heartbeat_seconds
    with hosts.together(*peers):
        yield


def of_shared_gpu(variables: Mapping[str, str], sharing: int) -> dict[str, str]:
    """Environment variables with the memory of one of `sharing` processes on a GPU."""
    others = {name: value for name, value in variables.items() if name not in _MEMORY}
    return others | {_MEMORY[0]: f"{_GPU_MEMORY / sharing:.3f}"}


def begin(*configs: RunConfig) -> None:
    """Opens the devices. Without an accelerator, makes them of this machine's cores first.

    All runs use the same ones: as many as suit the batches of all configs.
    """
    cpu.use_cores(math.gcd(*(config.data.batch_size for config in configs)) // hosts.count())
    hosts.open_devices()
