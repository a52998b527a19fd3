"""The processes and the devices that train a run together."""

import contextlib
import math
from collections.abc import Iterator

from absl import flags

from resnet_flax.config import RunConfig
from resnet_flax.runtime import cpu, hosts


@contextlib.contextmanager
def together(args: flags.FlagValues) -> Iterator[None]:
    """Joins the other processes that the flags name, until the context ends."""
    peers = args.coordinator, args.num_processes, args.process_id, args.heartbeat_seconds
    with hosts.together(*peers):
        yield


def begin(*configs: RunConfig) -> None:
    """Opens the devices. Without an accelerator, makes them of this machine's cores first.

    All runs use the same ones: as many as suit the batches of all configs.
    """
    cpu.use_cores(math.gcd(*(config.data.batch_size for config in configs)) // hosts.count())
    hosts.open_devices()
