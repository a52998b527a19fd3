"""The processes and the devices that train a run together."""

import contextlib
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence

import jax
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


def of_tpu_chip(variables: Mapping[str, str], chip: str) -> dict[str, str]:
    """Environment variables of a process that opens one chip of this TPU host, as Ray sets them."""
    alone = {"TPU_CHIPS_PER_HOST_BOUNDS": "1,1,1", "TPU_HOST_BOUNDS": "1,1,1"}
    return {**variables, **alone, "TPU_VISIBLE_CHIPS": chip}


def begin(*configs: RunConfig) -> None:
    """Opens the devices. Without an accelerator, makes them of this machine's cores first.

    All runs use the same ones: as many as suit the batches of all configs. Says on stderr if they
    are so many that a batch is shared too often, and if they leave a GPU or TPU unused.
    """
    cpu.use_cores(math.gcd(*(config.data.batch_size for config in configs)) // hosts.count())
    hosts.open_devices()
    for line in notes(configs, jax.device_count()) if hosts.is_first() else ():
        print(line, file=sys.stderr)
    unused = None if os.environ.get("JAX_PLATFORMS") else cpu.nvidia_or_tpu()
    if unused and jax.default_backend() == "cpu":
        print(
            f"This machine has {unused}, but jax found nothing there that it can use, and takes the"
            " CPU. It may lack its plug-in: experiments/README.md says which. JAX_PLATFORMS=cpu"
            " silences this line.",
            file=sys.stderr,
        )


def sees_few(config: RunConfig, count: int) -> bool:
    """Whether `count` devices share a batch so that BN sees fewer images than in the paper."""
    images, rest = divmod(config.data.batch_size, count)
    is_few = count > 1 and not rest and images < cpu.SMALLEST_SHARE
    return is_few and config.model.normalises_shares


def notes(configs: Sequence[RunConfig], count: int) -> list[str]:
    """A line if `count` devices for each run make another experiment of it."""
    few = [config.data.batch_size // count for config in configs if sees_few(config, count)]
    if not few:
        return []
    return [
        f"With {count} devices a run, batch normalisation sees {min(few)} images, fewer than the"
        f" {cpu.SMALLEST_SHARE} of Sec. 4.2. Use fewer devices, a larger data.batch_size or"
        ' model.bn_scope="global"; the last two are other experiments, too.'
    ]
