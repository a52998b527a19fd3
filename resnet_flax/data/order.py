"""Which images each step sees, a pure function of (seed, step), and each batch of an evaluation."""

import functools

import numpy as np


@functools.lru_cache(maxsize=2)
def epoch_permutation(seed: int, epoch: int, size: int) -> np.ndarray:
    """The order of one epoch: [size] int32.

    RandomState, because NumPy froze its streams: the same order in any version.
    """
    return np.random.RandomState([seed, epoch]).permutation(size).astype(np.int32)


def batch_indices(seed: int, step: int, batch_size: int, size: int) -> np.ndarray:
    """The images of the batch that takes step `step` to `step + 1`: [batch_size] int32.

    Epochs follow one another without a gap: a batch may end one and begin the next, so every image
    is seen once an epoch and none is dropped (50,000 = 390 * 128 + 80).
    """
    first = step * batch_size
    epochs = range(first // size, (first + batch_size - 1) // size + 1)
    orders = np.concatenate([epoch_permutation(seed, epoch, size) for epoch in epochs])
    start = first - epochs[0] * size
    return orders[start : start + batch_size]


def padded_batch(size: int, batch_size: int, number: int) -> tuple[np.ndarray, np.ndarray]:
    """(indices [batch_size] int32, mask [batch_size] bool) of a batch of an evaluation.

    The batches of numbers 0 to ceil(size / batch_size) - 1 have every index below `size` once; the
    last is padded with index 0, masked out, so that all have one shape.
    """
    indices = np.arange(number * batch_size, (number + 1) * batch_size, dtype=np.int32)
    mask = indices < size
    return np.where(mask, indices, 0), mask
