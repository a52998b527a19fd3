"""Scores every image of a split exactly once, on any number of devices."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from resnet_flax import metrics
from resnet_flax.parallel import Devices
from resnet_flax.steps import Images, eval_step


def padded_batches(size: int, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(indices [batch_size] int32, mask [batch_size] bool): every index below `size` once.

    The last batch is padded with image 0, masked out, so that all batches have one shape.
    """
    for start in range(0, size, batch_size):
        indices = np.arange(start, start + batch_size, dtype=np.int32)
        mask = indices < size
        yield np.where(mask, indices, 0), mask


class Evaluator:
    """A network's `eval_step`, mapped over devices."""

    def __init__(self, model: nn.Module, devices: Devices, batch_size: int):
        """`batch_size`: at most this many images at once, rounded up to equal shares."""
        self.devices, self.batch_size = devices, batch_size
        step = functools.partial(eval_step, model=model)
        self._step = devices.map(step, sharded=(False, False, False, True, True))

    def __call__(
        self,
        variables: Any,
        image_mean: jax.Array,
        data: Images,
        before_batch: Callable[[], None] = lambda: None,
    ) -> dict[str, float]:
        """Loss (nats) and error (fraction) over all images of `data`, and their count.

        `before_batch` may raise to end it; it is called at most two batches ahead of the devices.
        """
        merged = metrics.zeros()
        size, count = data.images.shape[0], len(self.devices.devices)
        batch_size = -(-min(self.batch_size, size) // count) * count
        for indices, mask in padded_batches(size, batch_size):
            before_batch()
            share = self.devices.shard(indices), self.devices.shard(mask)
            jax.block_until_ready(merged)
            totals = self._step(variables, image_mean, data, *share)
            merged = metrics.Totals(*(a + b for a, b in zip(merged, totals, strict=True)))
        return {**metrics.means(merged), "images": int(merged.images)}
