"""The peers and the devices that an entry point trains with."""

import contextlib
from collections.abc import Iterator

from absl import flags

from resnet_flax.config import RunConfig
from resnet_flax.runtime import cpu, hosts


@contextlib.contextmanager
def together(args: flags.FlagValues) -> Iterator[None]:
    """Meets the other processes that the flags name, for the time of the context."""
    peers = args.coordinator, args.num_processes, args.process_id, args.heartbeat_seconds
    with hosts.together(*peers):
        yield


def begin(config: RunConfig) -> None:
    """Shares out this machine's cores, if it has no accelerator, and begins to use the devices."""
    cpu.use_cores(config.data.batch_size // hosts.count())
    hosts.open_devices()
