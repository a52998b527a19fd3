"""The devices and the peers that an entry point trains with."""

import contextlib
from collections.abc import Iterator

from absl import flags

from resnet_flax import cpu, hosts
from resnet_flax.schema import RunConfig


@contextlib.contextmanager
def together(args: flags.FlagValues, config: RunConfig) -> Iterator[None]:
    """Shares out this machine's cores and meets the other processes, before a device is used.

    Raises UserError if the processes cannot meet.
    """
    cpu.use_cores(config.data.batch_size // (args.num_processes or 1))
    peers = args.coordinator, args.num_processes, args.process_id, args.heartbeat_seconds
    with hosts.together(*peers):
        yield
