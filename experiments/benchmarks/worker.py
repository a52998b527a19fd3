"""Times one training program in a process of its own. `benchmark.py` starts it.

The program takes a case as JSON and, if it must run there, the name of a platform. It prints a JSON
object with the costs of building it. Then it prints the milliseconds of a step for each line on
stdin.
"""

import functools
import json
import re
import resource
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from resnet_flax.models import stacking
from resnet_flax.models.catalogue import build_resnet
from resnet_flax.models.cpu_convolution import conv_general_dilated
from resnet_flax.models.resnet import Family, Norm, Shortcut
from resnet_flax.runtime import cpu
from resnet_flax.runtime.parallel import Devices
from resnet_flax.training import optim, steps

IMAGES = 1024


class Case(NamedTuple):
    """A network and how it is trained."""

    family: Family = "cifar"
    depth: int = 20
    shortcut: Shortcut = "pad"
    block: str = "postactivation"
    widths: tuple[int, ...] = ()
    norm: Norm = "batch"
    size: int = 32  # Pixels a side.
    channels: int = 3
    batch_size: int = 128
    dtype: str = "float32"
    devices: int = 0  # At most so many. 0: as many as training takes.
    scan: bool = False
    remat: bool = False
    seeds: int = 1
    steps_per_dispatch: int = 4
    # "ours", or "flax": nn.Conv on one device, one step a dispatch.
    kind: str = "ours"
    # Whether to stop after compilation.
    compile_only: bool = False


def main(case: Case, platform: str = "") -> None:
    if case.kind == "ours":
        cpu.keep_barriers()
    if case.devices:
        jax.config.update("jax_num_cpu_devices", case.devices)
    else:
        cpu.use_cores(case.batch_size)
    if platform and (found := jax.default_backend()) != platform:
        sys.exit(f"Expected a {platform}, jax found a {found}.")
    built = build(case)
    print(json.dumps(built.costs), flush=True)
    for _ in sys.stdin:
        print(built.run(), flush=True)


class Built(NamedTuple):
    """A compiled program."""

    costs: dict[str, Any]
    """Of building it."""
    run: Callable[[], float]
    """Runs it once. Returns milliseconds a step."""
    text: str
    """Its optimised HLO."""
    model: nn.Module


def build(case: Case) -> Built:
    """Compiles a case for the devices of this process."""
    ours = case.kind == "ours"
    devices = Devices(devices=jax.devices()[: case.devices or None])
    hook = conv_general_dilated if ours and devices.platform == "cpu" else None
    model = build_resnet(
        case.family,
        case.depth,
        case.shortcut,
        tuple(case.widths),
        case.block,
        norm=case.norm,
        num_classes=1000 if case.family == "imagenet" else 10,
        dtype=jnp.dtype(case.dtype),
        scan=case.scan,
        remat=case.remat,
        conv_general_dilated=hook,
    )
    optimizer = optim.sgd(lambda _: 0.1)
    rng = np.random.default_rng(0)
    count = IMAGES if case.size < 100 else 2 * case.batch_size
    shape = (count, case.size, case.size, case.channels)
    images = rng.integers(0, 256, shape, np.uint8)
    labels = rng.integers(0, 10, count, np.int32)
    data = devices.replicate(steps.Images(images.reshape(count, -1), labels))
    init = functools.partial(steps.init_state, model.clone(scan=True), optimizer)
    state = jax.device_get(jax.jit(init)(np.uint32(0), images.mean(axis=0, dtype=np.float32)))
    if not case.scan:
        state = stacking.unstack(state)
    if case.seeds > 1:
        state = jax.tree.map(lambda leaf: jnp.stack([leaf] * case.seeds), state)
    state = devices.replicate(state)
    indices = rng.integers(0, count, (case.steps_per_dispatch, case.batch_size), np.int32)
    share = devices.shard(indices)
    train_steps = functools.partial(
        steps.train_steps if ours else _one_step,
        model=model,
        optimizer=optimizer,
        pad=4 if case.size >= 28 else 0,
        flip=case.size >= 28,
        color=False,
        log_every=1000,
    )
    if case.seeds > 1:
        train_steps = jax.vmap(train_steps, in_axes=(0, None, None))
    step = devices.map(train_steps, sharded=(False, False, True), donate=0)
    start = time.perf_counter()
    lowered = step.lower(state, data, share)  # type: ignore[attr-defined]
    traced = time.perf_counter()
    compiled = lowered.compile()
    built: dict[str, Any] = {"trace_s": traced - start, "compile_s": time.perf_counter() - traced}
    memory = compiled.memory_analysis()
    built["temporary_mib"] = memory.temp_size_in_bytes / 2**20
    built |= {"platform": devices.platform, "devices": len(devices.devices)}
    text = compiled.as_text()
    built["all_reduces"] = len(re.findall(r" all-reduce(?:-start)?\(", text))
    if case.compile_only:
        return Built(built, lambda: 0.0, text, model)
    holder = [jax.block_until_ready(compiled(state, data, share))]
    built["resident_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10

    def run() -> float:
        start = time.perf_counter()
        holder[0] = jax.block_until_ready(compiled(holder[0], data, share))
        return (time.perf_counter() - start) / case.steps_per_dispatch * 1000

    return Built(built, run, text, model)


def _one_step(
    state: steps.TrainState, data: steps.Images, indices: jax.Array, **fields: Any
) -> steps.TrainState:
    """A step as a user of plain Flax writes it: no loop over steps, no augmentation."""
    images, labels = steps.select(data, indices[0], state.image_mean.shape)
    batch = steps.Batch((images.astype(jnp.float32) - state.image_mean) / 255, labels)
    return steps.train_step(state, batch, fields["model"], fields["optimizer"])


if __name__ == "__main__":
    main(Case(**json.loads(sys.argv[1])), *sys.argv[2:])
