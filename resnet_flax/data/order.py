"""Chooses the images of each step, from (seed, step) alone, and of each evaluation batch."""

import functools

import numpy as np


@functools.lru_cache(maxsize=2)
def epoch_permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    """The order of one epoch: [size] int32.

    It uses RandomState, because NumPy never changes its streams: any version gives the same order.
    """
    return np.random.RandomState([seed, epoch]).permutation(size).astype(np.int32)


def batch_indices(seed: int, step: int, batch_size: int, size: int) -> np.ndarray:
    """The images of the batch that takes step `step` to `step + 1`: [batch_size] int32.

    Epochs follow one another without a gap. A batch may contain the end of one epoch and the start
    of the next. So each epoch has every image once (50,000 = 390 * 128 + 80).
    """
    first = step * batch_size
    epochs = range(first // size, (first + batch_size - 1) // size + 1)
    orders = np.concatenate([epoch_permutation(seed, epoch, size) for epoch in epochs])
    start = first - epochs[0] * size
    return orders[start : start + batch_size]


def padded_batch(size: int, batch_size: int, number: int) -> tuple[np.ndarray, np.ndarray]:
    """The evaluation batch of a number: indices [batch_size] int32 and mask [batch_size] bool.

    The batches 0 to ceil(size / batch_size) - 1 contain every index below `size` once. The last one
    is padded with index 0, where the mask is False. So all batches have the same shape.
    """
    indices = np.arange(number * batch_size, (number + 1) * batch_size, dtype=np.int32)
    mask = indices < size
    return np.where(mask, indices, 0), mask
