"""Finds image classification sets of TFDS and reads them into memory, without TensorFlow.

N: images of the split; H, W, C: height, width, channels.
"""

import contextlib
import functools
import io
import re
import tempfile
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from resnet_flax.data.digits import Digits
from resnet_flax.data.prepared import (
    FILE_FORMAT,
    check_files,
    data_folder,
    find_builder,
    prepared_builder,
)
from resnet_flax.errors import UserError
from resnet_flax.storage import filesystem

_READ_AT_ONCE = 1000


class Split(NamedTuple):
    """The images of one split, in the order of its files."""

    images: np.ndarray  # [N, H, W, C] uint8
    labels: np.ndarray  # [N] int32
    num_classes: int

    @property
    def size(self) -> int:
        """The number of images, N."""
        return len(self.images)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of the images that the network sees."""
        return self.images.shape[1:]

    def image_mean(self) -> np.ndarray:
        """The per-pixel mean of Sec. 4.2: [H, W, C] float32, in 0..255. The sum is exact."""
        total = self.images.sum(axis=0, dtype=np.int64)
        return (total / len(self.images)).astype(np.float32)


class Described(NamedTuple):
    """The images of one split as steps see them, known without reading any."""

    image_shape: tuple[int, int, int]  # (H, W, C) in training.
    num_classes: int
    size: int | None  # N. None: not known, for images that are read while the steps run.
    resident: bool  # Whether all images are on each device.

    @property
    def mean_shape(self) -> tuple[int, int, int]:
        """The shape of what is subtracted: a mean of each pixel, or of each channel."""
        return self.image_shape if self.resident else (1, 1, self.image_shape[-1])


class Opened(NamedTuple):
    """A split of a prepared set, found and checked. Its images are not read yet."""

    builder: tfds.core.DatasetBuilder
    image_key: str
    label_key: str
    image_shape: tuple[int | None, int | None, int]  # None if the length varies.
    num_classes: int
    size: int


def load_split(name: str, split: str, data_dir: str = "") -> Split:
    """Reads a split, such as `train` or `train[:45000]`, of a prepared TFDS data set.

    - `name`: `digits`, which needs no preparation, or another TFDS set (`cifar10`, `cifar100`,
      `fashion_mnist`, ...). Its images must have one size and one label each.
    - `data_dir`: the folder in which the set was prepared. Empty: `TFDS_DATA_DIR` or, without that,
      TFDS's own default folder.

    All callers get the same arrays, which cannot be written: copy them first.

    Raises UserError if the set is unknown, not prepared or of another kind, or has no such split.
    """
    if _comes_along(name):
        return _load_split(name, split, "", ())
    info = filesystem.path(str(prepared_builder(name, data_dir).data_dir)) / "dataset_info.json"
    return _load_split(name, split, data_folder(data_dir), filesystem.identity(info))


@functools.lru_cache(maxsize=4)
def _load_split(name: str, split: str, folder: str, made: tuple[int | str, ...]) -> Split:
    """Reads a split.

    - `folder`: a full path, because TFDS_DATA_DIR may change between calls.
    - `made`: changes when the set is made again.
    """
    opened = open_split(name, split, folder)
    shape = tuple(length for length in opened.image_shape if length)
    if len(shape) < 3:
        raise UserError(
            f'Expected images of one size in data set {name!r} with data.crop="none", got varying'
            ' sizes; "scale" and "inception" cut crops, see configs/imagenet.py.'
        )
    examples, size = opened.builder.as_data_source(split=split), opened.size
    images = np.empty((size, *shape), np.uint8)
    labels = np.empty(size, np.int64)
    for start in range(0, size, _READ_AT_ONCE):
        stop = min(start + _READ_AT_ONCE, size)
        for i, example in enumerate(examples.__getitems__(range(start, stop)), start):
            images[i], labels[i] = example[opened.image_key], example[opened.label_key]
    labels = checked_labels(labels, opened.num_classes, name, split)
    for shared in (images, labels):  # A change would reach all later callers.
        shared.flags.writeable = False
    return Split(images, labels, opened.num_classes)


def checked_labels(labels: np.ndarray, num_classes: int, name: str, split: str) -> np.ndarray:
    """Converts labels from int64 to int32. Raises UserError if a label names no class.

    In TFDS, -1 means that the label was not published.
    """
    wrong = labels[(labels < 0) | (labels >= num_classes)]
    if wrong.size:
        raise UserError(
            f"Expected labels in 0..{num_classes - 1} in split {split!r} of {name}, got {wrong[0]}"
            f" (labels outside: {wrong.size} of {labels.size} read). Give splits that have labels"
            ' for data.train_split and data.test_split, such as "train[:90%]" and "train[90%:]".'
        )
    return labels.astype(np.int32)


def open_split(name: str, split: str, data_dir: str = "") -> Opened:
    """Finds a split of a prepared set without reading it. Arguments and errors: `load_split`."""
    builder = _with_splits(name, data_dir)
    shape, num_classes = _shape_and_classes(builder)
    size = _count(builder, name, split)
    check_files(builder, name, split, data_dir)
    return Opened(builder, *_keys(builder), shape, num_classes, size)


def count(name: str, split: str, data_dir: str = "") -> int:
    """The number of images in a split of a prepared set. Its files of images may be missing.

    Arguments and errors: `load_split`.
    """
    return _count(_with_splits(name, data_dir), name, split)


def shared(name: str, first: str, second: str, data_dir: str = "") -> int:
    """How many images two splits of a prepared set share. Arguments and errors: `load_split`."""
    builder = _with_splits(name, data_dir)
    count = 0
    parts = [_parts(builder, name, split) for split in (first, second)]
    for whole in {of for of, _ in parts[0]}:
        chosen = np.zeros((2, builder.info.splits[whole].num_examples), bool)
        for row, of_split in zip(chosen, parts, strict=True):
            for of, part in of_split:
                if of == whole:
                    row[part.start : part.stop] = True
        count += int(chosen.all(axis=0).sum())
    return count


def _with_splits(name: str, data_dir: str) -> tfds.core.DatasetBuilder:
    return _digits_builder() if _comes_along(name) else prepared_builder(name, data_dir)


def _comes_along(name: str) -> bool:
    if name != Digits.name and re.split("[:/]", name)[0] == Digits.name:
        raise UserError(
            f"Expected data.name={Digits.name}, which has one version, got data.name={name}."
        )
    return name == Digits.name


def _count(builder: tfds.core.DatasetBuilder, name: str, split: str) -> int:
    parts = _parts(builder, name, split)
    size = sum(len(part) for _, part in parts)
    sliced = (part for of, part in parts if builder.info.splits[of].num_examples)
    # TFDS would take train[10:9] for train[10:].
    if not size or any(part.stop <= part.start for part in sliced):
        got = "none in one of its parts" if size else "none"
        raise UserError(f"Expected images in split {split!r} of {name}, got {got}.")
    return size


def _parts(builder: tfds.core.DatasetBuilder, name: str, split: str) -> list[tuple[str, range]]:
    """The splits of the set that a split consists of, and which of their images."""
    known = builder.info.splits
    if split in known:  # One may be named `all`.
        return [(split, range(known[split].num_examples))]
    try:
        parts = tfds.core.splits.AbstractSplit.from_spec(split).to_absolute(known)
    except (ValueError, NotImplementedError) as error:
        given = f"Cannot read split {split!r} of {name}"
        raise UserError(f"{given}: {' '.join(str(error).split())}") from error
    found = []
    for part in parts:
        end = known[part.splitname].num_examples if part.to is None else part.to
        found.append((str(part.splitname), range(part.from_ or 0, end)))
    return found


def describe(name: str, data_dir: str = "") -> tuple[tuple[int, int, int], int]:
    """Image shape (H, W, C) and class count of a data set. It need not be prepared.

    If sizes vary, H and W are the paper's 224. Raises UserError if the set is unknown.
    """
    builder = _digits_builder() if _comes_along(name) else find_builder(name, data_dir)
    (height, width, channels), num_classes = _shape_and_classes(builder)
    return (height or 224, width or 224, channels), num_classes


@functools.lru_cache(maxsize=1)
def _digits_builder() -> tfds.core.DatasetBuilder:
    # Each process prepares it again. That takes 0.2 s, and no two processes share a folder.
    folder = tempfile.TemporaryDirectory(prefix="resnet_flax_digits_")
    builder = Digits(data_dir=folder.name, file_format=FILE_FORMAT)
    # Silent: TFDS would print that it downloads, and show bars, in a notebook as widgets.
    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        builder.download_and_prepare()
    tfds.enable_progress_bar()
    builder.folder = folder  # Python deletes the folder together with the builder.
    return builder


def _keys(builder: tfds.core.DatasetBuilder) -> tuple[str, str]:
    """The names of the features that hold the image and the label."""
    keys = builder.info.supervised_keys
    return keys if keys and len(keys) == 2 else ("image", "label")


def _shape_and_classes(
    builder: tfds.core.DatasetBuilder,
) -> tuple[tuple[int | None, int | None, int], int]:
    """Image shape, with None for a length that varies, and the number of classes.

    Raises UserError unless the set has uint8 images with one class label each.
    """
    features = dict(builder.info.features or {})
    image_key, label_key = _keys(builder)
    image, label = features.get(image_key), features.get(label_key)
    if (
        not isinstance(image, tfds.features.Image)
        or image.np_dtype != np.uint8
        or not isinstance(label, tfds.features.ClassLabel)
        or not label.num_classes
    ):
        raise UserError(
            f"Expected uint8 images with a class label in data set {builder.name!r}, got"
            f" {image_key}: {image} and {label_key}: {label}."
        )
    return image.shape, label.num_classes
