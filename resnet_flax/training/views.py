"""Scores a split by the mean prediction over several views of each image (Sec. 3.4).

B: batch; V: views of an image; H, W: height and width of a view; K: classes; N: images of a split.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from resnet_flax.data import augment, crops, decoding
from resnet_flax.data.order import padded_batch
from resnet_flax.data.stream import Batch, EvaluationBatches, Stream
from resnet_flax.data.workers import in_background
from resnet_flax.runtime.parallel import DATA_AXIS, Devices
from resnet_flax.training.steps import eval_logits

# For each batch: positions in the split [B], and V, H, W.
Plan = list[tuple[np.ndarray, tuple[int, int, int]]]


class Views:
    """Scores a network by its mean class probabilities over several views of each image."""

    def __init__(
        self,
        model: nn.Module,
        devices: Devices,
        variables: Any,
        image_mean: np.ndarray,
        say: Callable[[str], None],
    ):
        """`say` gets lines on damaged images and on progress."""
        self.model, self.devices, self.say = model, devices, say
        self.arguments = devices.replicate(variables), devices.replicate(image_mean)

    def ten_crop(self, stream: Stream, batch_size: int) -> dict[str, float]:
        """Scores by five crops and their mirror images (Krizhevsky et al. 2012, Sec. 4.1).

        Returns loss (nats) and error (fraction) of the mean probabilities, and the image count.
        """
        _, size, (shorter, _) = stream.crops
        cut = functools.partial(crops.five_crops, size=size, shorter=shorter)
        plan = self._plan(np.arange(stream.size), -(-batch_size // 10), (5, size, size))
        return _scores(*self._probabilities(stream, cut, plan, mirrored=True))

    def multi_scale(
        self, stream: Stream, batch_size: int, sides: Sequence[int]
    ) -> dict[str, float]:
        """Scores by whole images in several sizes (Sec. 3.4).

        - `sides`: the lengths to which the shorter side is resized. The ratio of the sides is
          rounded to sixths.
        - `batch_size`: the number of images of the size of a training crop in a batch. A batch of
          larger images has fewer.

        Returns the same as `ten_crop`.
        """
        sizes = [decoding.read_size(encoded) for encoded in stream.encoded()]
        total = None
        for side in sides:
            shapes = [crops.whole_shape(height, width, side) for height, width in sizes]
            plan: Plan = []
            for shape in sorted(set(shapes)):
                alike = np.array([i for i, other in enumerate(shapes) if other == shape])
                at_once = max(1, batch_size * stream.crops.size**2 // (shape[0] * shape[1]))
                plan += self._plan(alike, at_once, (1, *shape))
            found, labels = self._probabilities(stream, crops.whole, plan, mirrored=False)
            total = found if total is None else total + found
            self.say(f"shorter side {side}: error {_scores(found, labels)['error']:.2%}")
        assert total is not None, "Expected at least one of `sides`, got none."
        return _scores(total / len(sides), labels)

    def _plan(self, positions: np.ndarray, at_once: int, shape: tuple[int, int, int]) -> Plan:
        """Batches of equal size that cover `positions`. The last may repeat the first position."""
        batch_size = self.devices.rounded_up(min(at_once, len(positions)))
        count = -(-len(positions) // batch_size)
        batches = (padded_batch(len(positions), batch_size, number)[0] for number in range(count))
        return [(positions[indices], shape) for indices in batches]

    def _probabilities(
        self, stream: Stream, cut: crops.Cut, plan: Plan, *, mirrored: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Mean probabilities over the views [N, K] float32, and labels [N] int32."""
        step = self.devices.map(
            _mean_over_views, (False, False, True), model=self.model, mirrored=mirrored
        )

        def on_devices(batch: Batch) -> tuple[jax.Array, np.ndarray]:
            return self.devices.shard_places(batch.images, 0), batch.labels

        found = np.zeros((stream.size, stream.num_classes), np.float32)
        labels = np.zeros(stream.size, np.int32)
        load = EvaluationBatches(stream, cut, plan)
        with in_background(load, on_devices, self.say) as batches:
            for (positions, _), (images, of_batch) in zip(plan, batches, strict=True):
                # Padding repeats an image, so it writes the same values again.
                found[positions] = step(*self.arguments, images)
                labels[positions] = of_batch
        return found, labels


def _mean_over_views(
    variables: Any, image_mean: jax.Array, images: jax.Array, *, model: nn.Module, mirrored: bool
) -> jax.Array:
    """Mean probabilities over views: [B, V, H, W, 3] uint8 on this device -> [D * B, K].

    The result has the images of all D devices.
    """
    batch, views = images.shape[:2]
    x = augment.normalize(images.reshape(-1, *images.shape[2:]), image_mean)
    found = jax.nn.softmax(eval_logits(model, variables, x))
    if mirrored:
        found = (found + jax.nn.softmax(eval_logits(model, variables, x[:, :, ::-1]))) / 2
    means = found.reshape(batch, views, -1).mean(axis=1)
    return jax.lax.all_gather(means, DATA_AXIS, tiled=True)


def _scores(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Mean loss, error and image count, from [N, K] probabilities and [N] labels.

    An image whose probabilities are not finite is an error.
    """
    wrong = (probabilities.argmax(1) != labels) | ~np.isfinite(probabilities).all(1)
    smallest = np.finfo(np.float32).tiny
    of_label = np.maximum(probabilities[np.arange(len(labels)), labels], smallest)
    loss = -np.log(of_label, dtype=np.float64).mean()
    return {"loss": float(loss), "error": float(wrong.mean()), "images": len(labels)}
