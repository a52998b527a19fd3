"""Scores every image of a split exactly once, on any number of devices."""

from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn

from resnet_flax.runtime.parallel import Devices
from resnet_flax.training import metrics
from resnet_flax.training.feed import Feed
from resnet_flax.training.steps import eval_step


class Evaluator:
    """A network's `eval_step`, mapped over devices."""

    def __init__(self, model: nn.Module, devices: Devices, batch_size: int):
        """`batch_size`: the largest number of images at once, rounded up to equal shares."""
        self.devices, self.batch_size = devices, batch_size
        self._step = devices.map(eval_step, sharded=(False, False, False, True, True), model=model)

    def __call__(
        self,
        variables: Any,
        image_mean: jax.Array,
        feed: Feed,
        before_batch: Callable[[], None] = lambda: None,
    ) -> dict[str, float]:
        """Mean loss (nats), error (fraction) and number of all images of `feed`.

        `before_batch` may raise to stop the evaluation. It is called at most two batches ahead of
        the devices.
        """
        merged = metrics.zeros()
        batch_size = self.devices.rounded_up(min(self.batch_size, feed.size))
        with feed.evaluation(batch_size) as batches:
            for fed, mask in batches:
                before_batch()
                jax.block_until_ready(merged)
                totals = self._step(variables, image_mean, feed.resident, fed, mask)
                merged = metrics.Totals(*(a + b for a, b in zip(merged, totals, strict=True)))
        return {**metrics.means(merged), "images": int(merged.images)}
