"""Maps a step over the devices of all processes. Only this file uses pmap and shard_map."""

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar, get_args

import jax
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from resnet_flax.errors import UserError, summary

# The mapped axis. Steps take their means over it.
DATA_AXIS = "data"
# A sweep comes back to each network with the next seed.
_PROGRAMS = 64
Backend = Literal["pmap", "shard_map"]
M = TypeVar("M")
S = TypeVar("S")


def means_and_sums(means: M, sums: S) -> tuple[M, S]:
    """The mean of one tree and the sum of another over DATA_AXIS, with a single all-reduce.

    Arrays may have any shape. They are float32, or integers whose sums are below 2**24, so that
    float32 holds them exactly.
    """
    flat, unravel = ravel_pytree((means, sums))
    means, sums = unravel(jax.lax.psum(flat, DATA_AXIS))
    count = jax.lax.axis_size(DATA_AXIS)
    return jax.tree.map(lambda total: total / count, means), sums


def open_devices() -> dict[str, Any]:
    """Opens this process's devices. Returns facts that must be equal in all processes of a run.

    They are the platform, the kind and the number of devices. Raises UserError if the requested
    platform has no device.
    """
    try:
        devices = jax.local_devices()
    except Exception as error:  # jax raises AssertionError if it silently skips a platform.
        reason = f" ({summary(error)})" if str(error) else ""
        raise UserError(
            f"Found no device with JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')!r}{reason}."
            " Give JAX_PLATFORMS=cpu, or unset it (in a job, its file sets it) to use the devices"
            " that jax finds. For a GPU or TPU, jax needs a plug-in: experiments/README.md says"
            " which."
        ) from error
    kind = {"platform": devices[0].platform, "device_kind": devices[0].device_kind}
    return {**kind, "local_devices": len(devices)}


def check_divisible(batch_size: int, count: int) -> None:
    """Raises UserError unless `count` devices get equal shares of the batch."""
    if batch_size < 1 or batch_size % count:
        below = max(batch_size - batch_size % count, count)
        raise UserError(
            f"Expected data.batch_size divisible by the number of devices, {count}, got"
            f" {batch_size}; the nearest: {below} and {below + count}."
        )


class Devices:
    """All devices of all processes along one axis. Maps steps over them.

    A mapped step sees replicated arguments whole, and its device's share of sharded ones. Its
    result must be the same on every device. It comes back without a device axis.
    """

    def __init__(self, backend: Backend = "pmap", devices: Sequence[jax.Device] | None = None):
        """`devices`: all by default; tests use fewer. Raises UserError for an unknown backend."""
        if backend not in get_args(Backend):
            raise UserError(f"Expected parallel in {get_args(Backend)}, got {backend!r}.")
        self.backend = backend
        self.devices = list(devices or jax.devices())
        self.local = [d for d in self.devices if d.process_index == jax.process_index()]
        # pmap works on this process's part of an array, jit on the whole array.
        self.mesh = Mesh(self.local if backend == "pmap" else self.devices, (DATA_AXIS,))

    @property
    def platform(self) -> str:
        """The platform of the devices: cpu, gpu or tpu. It may not be this process's default."""
        return self.devices[0].platform

    def rounded_up(self, batch_size: int) -> int:
        """The smallest batch of at least this size with equal shares for all devices."""
        return -(-batch_size // len(self.devices)) * len(self.devices)

    def replicate(self, tree: Any) -> Any:
        """Copies a tree of arrays to every device of this process."""
        # Through the host and never an alias: a step donates its state, which would also delete
        # the source.
        host_tree = jax.device_get(tree)
        return jax.device_put(host_tree, NamedSharding(self.mesh, P()), may_alias=False)

    def places(self, batch_size: int) -> np.ndarray:
        """This process's positions in a global batch, device by device: [B] int."""
        shares = np.arange(batch_size).reshape(len(self.devices), -1)
        return shares[[i for i, d in enumerate(self.devices) if d in self.local]].ravel()

    def shard(self, batch: np.ndarray) -> jax.Array:
        """The global batch [..., B], equal in every process -> [D, ..., B/D] on devices."""
        return self.shard_places(batch[..., self.places(batch.shape[-1])], axis=-1)

    def shard_places(self, part: np.ndarray, axis: int) -> jax.Array:
        """This process's part, as `places` along `axis` -> [D, ..., B/D, ...] on devices."""
        axis %= part.ndim
        shape = (*part.shape[:axis], len(self.local), -1, *part.shape[axis + 1 :])
        shares = np.moveaxis(part.reshape(shape), axis, 0)
        sharding = NamedSharding(self.mesh, P(DATA_AXIS))
        return jax.make_array_from_process_local_data(sharding, shares)

    def replicated_shapes(self, tree: Any) -> Any:
        """Shapes and types of a tree that is on every device, to lower a mapped step with.

        It is for one process that lowers for all devices, which may be those of a described pod.
        """
        everywhere = NamedSharding(Mesh(self.devices, (DATA_AXIS,)), P())
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere), tree
        )

    def sharded_shape(self, shape: tuple[int, ...], dtype: Any, axis: int) -> jax.ShapeDtypeStruct:
        """The shape [D, ..., B/D, ...] of a batch on all devices, from the whole batch's shape.

        `axis`: the axis of B. To lower a mapped step with, as `replicated_shapes`.
        """
        count = len(self.devices)
        shares = (count, *shape[:axis], shape[axis] // count, *shape[axis + 1 :])
        sharding = NamedSharding(Mesh(self.devices, (DATA_AXIS,)), P(DATA_AXIS))
        return jax.ShapeDtypeStruct(shares, dtype, sharding=sharding)

    def map(
        self,
        step: Callable[..., Any],
        sharded: Sequence[bool],
        donate: int | None = None,
        **static: Any,
    ) -> Callable[..., Any]:
        """Compiles `step` for all devices. Its positional arguments are trees of arrays.

        - `sharded`: for each argument, true if it comes from `shard`, false if from `replicate`.
        - `donate`: the index of the argument whose memory the result may use.
        - `static`: its keyword arguments, hashable. They become part of the program.

        Equal arguments, on equal devices, give the same function. It is compiled once a process.
        """
        devices = tuple(self.devices) if self.backend == "pmap" else None
        fixed = tuple(sorted(static.items()))
        return _mapped(step, tuple(sharded), donate, fixed, self.mesh, devices)


@functools.lru_cache(maxsize=_PROGRAMS)
def _mapped(
    step: Callable[..., Any],
    sharded: tuple[bool, ...],
    donate: int | None,
    static: tuple[tuple[str, Any], ...],
    mesh: Mesh,
    pmapped: tuple[jax.Device, ...] | None,
) -> Callable[..., Any]:
    """`pmapped`: the devices of a pmap. None: a shard_map over `mesh`."""
    step, donated = functools.partial(step, **dict(static)), () if donate is None else (donate,)
    if pmapped:
        return jax.pmap(
            step,
            axis_name=DATA_AXIS,
            in_axes=tuple(0 if s else None for s in sharded),
            out_axes=None,
            donate_argnums=donated,
            devices=pmapped,
        )

    def on_device(*args: Any) -> Any:
        shares = (
            jax.tree.map(lambda x: x[0], a) if s else a for a, s in zip(args, sharded, strict=True)
        )
        return step(*shares)

    # check_vma would turn a mean of gradients into their sum, without an error.
    mapped = jax.shard_map(
        on_device,
        mesh=mesh,
        in_specs=tuple(P(DATA_AXIS) if s else P() for s in sharded),
        out_specs=P(),
        check_vma=False,
    )
    return jax.jit(mapped, donate_argnums=donated)
