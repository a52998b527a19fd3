"""Reads image sets of TFDS that do not fit in memory or whose images vary in size.

`workers.py` calls these functions in worker processes.

B: images of a batch that this process reads; V: views of an image; H, W: height and width of a
view.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from resnet_flax.data import crops, sources
from resnet_flax.data.order import batch_indices
from resnet_flax.runtime import cpu

_SAMPLE = 100


class Crops(NamedTuple):
    """The kind and size of the crops of training images, see `crops.py`."""

    kind: Literal["scale", "inception"]
    size: int
    """Side of a crop in pixels."""
    shorter: tuple[int, int]
    """Range of the shorter side for `scale`. At evaluation the shorter side is the lower end."""


class Stream(NamedTuple):
    """A split of encoded images of any size, and the crops to cut from them."""

    name: str
    split: str
    examples: Any  # TFDS's data source; its images are bytes.
    image_key: str
    label_key: str
    num_classes: int
    crops: Crops
    channel_mean: tuple[float, float, float]

    @property
    def size(self) -> int:
        """The number of images in the split."""
        return len(self.examples)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of the images that the network sees in training."""
        return self.crops.size, self.crops.size, 3

    def image_mean(self) -> np.ndarray:
        """The mean of each channel: [1, 1, C] float32, in 0..255."""
        return np.asarray(self.channel_mean, np.float32).reshape(1, 1, 3)

    def encoded(self) -> Iterator[bytes]:
        """All images of the split, in order."""
        for start in range(0, self.size, 1000):
            yield from self.read(np.arange(start, min(start + 1000, self.size)))[0]

    def read(self, indices: np.ndarray) -> tuple[list[bytes], np.ndarray]:
        """Encoded images and labels [B] int32 at these positions of the split.

        Raises UserError if a label names no class, before any step sees it.
        """
        found = self.examples.__getitems__([int(i) for i in indices])
        labels = np.array([example[self.label_key] for example in found], np.int64)
        labels = sources.checked_labels(labels, self.num_classes, self.name, self.split)
        return [example[self.image_key] for example in found], labels


class Batch(NamedTuple):
    """Decoded and cut images. The device does the rest, such as normalisation."""

    images: np.ndarray  # [B, V, H, W, 3] uint8.
    labels: np.ndarray  # [B] int32.
    damaged: np.ndarray  # [B] int32: the position of a damaged image in the split, otherwise -1.


def open_stream(
    name: str,
    split: str,
    crops: Crops,
    channel_mean: tuple[float, float, float],
    data_dir: str = "",
) -> Stream:
    """Opens a split of a prepared TFDS set. Raises UserError as `sources.load_split` does.

    Labels are stored together with the images, which are 140 GB for ImageNet. So this reads only a
    sample, to find a split without labels at once. `Stream.read` checks the other labels.
    """
    opened = sources.open_split(name, split, data_dir)
    cpu.workers(1)  # Raises for a wrong number of workers before anything is written.
    examples = opened.builder.as_data_source(
        split=split, decoders={opened.image_key: tfds.decode.SkipDecoding()}
    )
    keys = opened.image_key, opened.label_key
    stream = Stream(name, split, examples, *keys, opened.num_classes, crops, channel_mean)
    stream.read(np.linspace(0, stream.size - 1, min(stream.size, _SAMPLE), dtype=int))
    return stream


@dataclasses.dataclass(frozen=True)
class TrainingBatches:
    """This process's part of the global batches of training, by number of the dispatch.

    Image and crop depend only on (seed, step, place), not on the number of processes.
    """

    stream: Stream
    seed: int
    batch_size: int
    places: np.ndarray  # [B] positions in the global batch.
    steps: range
    per_dispatch: int

    def __len__(self) -> int:
        return -(-len(self.steps) // self.per_dispatch)

    def __call__(self, number: int) -> Batch:
        """The batches of the k steps of a dispatch, joined: k * B images of one view."""
        kind, size, shorter = self.stream.crops
        crop: Callable[..., list[crops.Box]]
        if kind == "scale":
            crop = functools.partial(crops.scale_crop, size=size, shorter=shorter)
        else:
            crop = crops.inception_crop
        indices, cuts = [], []
        for step in self.steps[number * self.per_dispatch :][: self.per_dispatch]:
            order = batch_indices(self.seed, step, self.batch_size, self.stream.size)
            indices.append(order[self.places])
            draws = crop_draws(self.seed, step, self.batch_size)[self.places]
            cuts += [functools.partial(crop, draws=row) for row in draws]
        return _load(self.stream, np.concatenate(indices), cuts, (1, size, size))


@dataclasses.dataclass(frozen=True)
class EvaluationBatches:
    """Batches of given images by number of the batch. All images are cut in the same way."""

    stream: Stream
    cut: crops.Cut
    plan: Sequence[tuple[np.ndarray, tuple[int, int, int]]]
    """For each batch: positions in the split [B], and V, H, W of the views."""

    def __len__(self) -> int:
        return len(self.plan)

    def __call__(self, number: int) -> Batch:
        indices, shape = self.plan[number]
        return _load(self.stream, indices, [self.cut] * len(indices), shape)


def _load(
    stream: Stream, indices: np.ndarray, cuts: Sequence[crops.Cut], shape: tuple[int, int, int]
) -> Batch:
    from resnet_flax.data import decoding  # Imports OpenCV, which a set in memory does not need.

    encoded, labels = stream.read(indices)
    images = np.empty((len(encoded), *shape, 3), np.uint8)
    damaged = [decoding.cut(*each) for each in zip(encoded, cuts, images, strict=True)]
    return Batch(images, labels, np.where(damaged, indices, -1).astype(np.int32))


@functools.lru_cache(maxsize=1)
def crop_draws(seed: int, step: int, batch_size: int) -> np.ndarray:
    """The draws for the crops of one global batch: [batch_size, DRAWS] float64 in [0, 1)."""
    # `order.py` seeds with two numbers. Three numbers here give other streams.
    return np.random.RandomState([seed, step, 1]).uniform(size=(batch_size, crops.DRAWS))
