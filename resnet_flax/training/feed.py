"""Feeds the steps from a split, with indices into images on the devices or with streamed images.

B: images on a device; k: steps of a dispatch; D: devices of this process.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol

import jax
import numpy as np

from resnet_flax.data import crops
from resnet_flax.data.order import batch_indices, padded_batch
from resnet_flax.data.sources import Described, Split
from resnet_flax.data.stream import (
    Batch,
    EvaluationBatches,
    Stream,
    TrainingBatches,
)
from resnet_flax.runtime.parallel import Devices
from resnet_flax.training.steps import Fed, Images


class Feed(Protocol):
    """A source of inputs for `steps.train_steps` and `steps.eval_step`, from one split."""

    size: int
    """The number of images in the split."""
    resident: Images | None
    """The images on each device, or None if images are streamed."""

    def training(
        self, seed: int, batch_size: int, steps: range, per_dispatch: int
    ) -> contextlib.AbstractContextManager[Iterator[Fed]]:
        """Yields an iterator over the inputs [D, k, B, ...] of each dispatch of these steps."""

    def evaluation(
        self, batch_size: int
    ) -> contextlib.AbstractContextManager[Iterator[tuple[Fed, jax.Array]]]:
        """Yields an iterator over inputs [D, B, ...] and masks [D, B], for the whole split."""


def training_shapes(
    images: Described, devices: Devices, batch_size: int, per_dispatch: int
) -> tuple[Any, Any]:
    """The shapes of `Feed.resident` and of the inputs of a dispatch, to lower steps with.

    They are trees of ShapeDtypeStruct in place of arrays.
    """
    batch = functools.partial(devices.sharded_shape, axis=1)
    places = per_dispatch, batch_size
    labels = batch(places, np.int32)
    if not images.resident:
        streamed: Any = (batch((*places, *images.image_shape), np.uint8), labels)
        return None, Images(*streamed)
    assert images.size is not None  # It is known if the images are resident.
    resident: Any = (
        jax.ShapeDtypeStruct((images.size, math.prod(images.image_shape)), np.uint8),
        jax.ShapeDtypeStruct((images.size,), np.int32),
    )
    return devices.replicated_shapes(Images(*resident)), labels


class ResidentFeed:
    """A split whose images are all on each device."""

    def __init__(self, split: Split, devices: Devices):
        self.size, self.devices = split.size, devices
        images = split.images.reshape(split.size, -1)
        self.resident: Images | None = devices.replicate(Images(images, split.labels))

    @contextlib.contextmanager
    def training(
        self, seed: int, batch_size: int, steps: range, per_dispatch: int
    ) -> Iterator[Iterator[Fed]]:
        starts = range(0, len(steps), per_dispatch)
        dispatches = (steps[start : start + per_dispatch] for start in starts)
        yield (
            self.devices.shard(
                np.stack([batch_indices(seed, step, batch_size, self.size) for step in dispatch])
            )
            for dispatch in dispatches
        )

    @contextlib.contextmanager
    def evaluation(self, batch_size: int) -> Iterator[Iterator[tuple[Fed, jax.Array]]]:
        numbers = range(-(-self.size // batch_size))
        batches = (padded_batch(self.size, batch_size, number) for number in numbers)
        yield ((self.devices.shard(i), self.devices.shard(mask)) for i, mask in batches)


class StreamFeed:
    """A split that is read while the steps run."""

    resident: Images | None = None

    def __init__(self, stream: Stream, devices: Devices, say: Callable[[str], None]):
        """`say` gets a line on damaged images."""
        self.stream, self.devices, self.say = stream, devices, say
        self.size = stream.size

    @contextlib.contextmanager
    def training(
        self, seed: int, batch_size: int, steps: range, per_dispatch: int
    ) -> Iterator[Iterator[Fed]]:
        places = self.devices.places(batch_size)
        load = TrainingBatches(self.stream, seed, batch_size, places, steps, per_dispatch)

        def on_devices(batch: Batch) -> Images:
            steps = len(batch.labels) // len(places)
            return self._shard(batch, (steps, len(places)))

        with self._in_background(load, on_devices) as fed:
            yield fed

    @contextlib.contextmanager
    def evaluation(self, batch_size: int) -> Iterator[Iterator[tuple[Fed, jax.Array]]]:
        places = self.devices.places(batch_size)
        _, side, (shorter, _) = self.stream.crops
        numbers = range(-(-self.size // batch_size))
        batches = [padded_batch(self.size, batch_size, number) for number in numbers]
        plan = [(indices[places], (1, side, side)) for indices, _ in batches]
        cut = functools.partial(crops.center_crop, size=side, shorter=shorter)

        def on_devices(batch: Batch) -> Images:
            return self._shard(batch, (len(places),))

        load = EvaluationBatches(self.stream, cut, plan)
        with self._in_background(load, on_devices) as fed:
            masks = (self.devices.shard(mask) for _, mask in batches)
            yield zip(fed, masks, strict=True)

    def _in_background(
        self, load: TrainingBatches | EvaluationBatches, then: Callable[[Batch], Images]
    ) -> AbstractContextManager[Iterator[Images]]:
        from resnet_flax.data import workers  # Imports Grain, which a set in memory does not need.

        return workers.in_background(load, then, self.say)

    def _shard(self, batch: Batch, shape: tuple[int, ...]) -> Images:
        """Puts batches of one view on the devices. The last axis of `shape` is split over them."""
        axis = len(shape) - 1
        images = batch.images.reshape(*shape, *self.stream.image_shape)
        labels = batch.labels.reshape(shape)
        return Images(*(self.devices.shard_places(part, axis) for part in (images, labels)))
