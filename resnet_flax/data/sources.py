"""Image classification sets of TFDS, found and read whole into memory without TensorFlow.

N: images of the split; H, W, C: height, width, channels.
"""

import contextlib
import functools
import io
import os
import re
import shlex
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.utils.version import list_all_versions

from resnet_flax.data.digits import Digits
from resnet_flax.errors import UserError, summary

# Random access needs it; TFDS prepares TFRecord files unless told.
FILE_FORMAT = "array_record"
_READ_AT_ONCE = 1000


class Split(NamedTuple):
    """The images of one split, in the order of its files."""

    images: np.ndarray  # [N, H, W, C] uint8
    labels: np.ndarray  # [N] int32
    num_classes: int

    @property
    def size(self) -> int:
        """N."""
        return len(self.images)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of what the network sees."""
        return self.images.shape[1:]

    def image_mean(self) -> np.ndarray:
        """Sec. 4.2, the per-pixel mean: [H, W, C] float32, in 0..255; summed exactly."""
        total = self.images.sum(axis=0, dtype=np.int64)
        return (total / len(self.images)).astype(np.float32)


class Opened(NamedTuple):
    """A split of a prepared set, found and checked, of which nothing is read yet."""

    builder: tfds.core.DatasetBuilder
    image_key: str
    label_key: str
    image_shape: tuple[int | None, int | None, int]  # None: it varies.
    num_classes: int
    size: int


def load_split(name: str, split: str, data_dir: str = "") -> Split:
    """Reads a split, such as `train` or `train[:45000]`, of a prepared TFDS data set.

    - `name`: `digits`, which needs no preparation, or any TFDS set of equally sized images with
      one label each (`cifar10`, `cifar100`, `fashion_mnist`, ...).
    - `data_dir`: where it was prepared; empty means `TFDS_DATA_DIR` or, without that, TFDS's own
      default folder.

    Raises UserError if the set is unknown, absent, of another kind, or lacks that split.
    """
    return _load_split(name, split, "" if name == Digits.name else _folder(data_dir))


@functools.lru_cache(maxsize=4)
def _load_split(name: str, split: str, folder: str) -> Split:
    """`folder`: in full, because what TFDS_DATA_DIR says may change."""
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
    return Split(
        images, checked_labels(labels, opened.num_classes, name, split), opened.num_classes
    )


def checked_labels(labels: np.ndarray, num_classes: int, name: str, split: str) -> np.ndarray:
    """Labels as they were read, int64, as int32. Raises UserError unless all name a class.

    TFDS has -1 for a label that was not published.
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
    """Finds a prepared set's split without reading it; the rest is as in `load_split`."""
    builder = _digits_builder() if name == Digits.name else _prepared_builder(name, data_dir)
    shape, num_classes = _shape_and_classes(builder)
    try:
        size = builder.info.splits[split].num_examples
    except ValueError as error:
        given = f"Cannot read split {split!r} of {name}"
        raise UserError(f"{given}: {' '.join(str(error).split())}") from error
    if size < 1:  # Below 0 for train[10:5].
        raise UserError(f"Expected images in split {split!r} of {name}, got none.")
    _check_files(builder, name, split, data_dir)
    return Opened(builder, *_keys(builder), shape, num_classes, size)


def describe(name: str, data_dir: str = "") -> tuple[tuple[int, int, int], int]:
    """Image shape (H, W, C) and class count of a data set, which need not be prepared.

    Where sizes vary the paper's 224 stands for H and W. Raises UserError if the set is unknown.
    """
    builder = _digits_builder() if name == Digits.name else _builder(name, data_dir)
    (height, width, channels), num_classes = _shape_and_classes(builder)
    return (height or 224, width or 224, channels), num_classes


@functools.lru_cache(maxsize=1)
def _digits_builder() -> tfds.core.DatasetBuilder:
    # Prepared afresh by each process: it takes 0.2 s, and no two processes share a folder.
    folder = tempfile.TemporaryDirectory(prefix="resnet_flax_digits_")
    builder = Digits(data_dir=folder.name, file_format=FILE_FORMAT)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        builder.download_and_prepare()  # TFDS would announce a download.
    builder.folder = folder  # Lives, and is deleted, with the builder.
    return builder


def _builder(name: str, data_dir: str) -> tfds.core.DatasetBuilder:
    data_dir = _folder(data_dir)
    try:
        return tfds.builder(_with_version(name, data_dir), data_dir=data_dir, try_gcs=False)
    except Exception as error:  # From a wrong version to a library that one set alone needs.
        reason = "" if isinstance(error, tfds.core.DatasetNotFoundError) else f" ({summary(error)})"
        raise UserError(
            f"Unknown data set data.name={name!r}{reason}: it is neither digits, nor registered in"
            f" TFDS, nor prepared in {data_dir}.{_other_version(name, data_dir)}"
        ) from error


def _prepared_builder(name: str, data_dir: str) -> tfds.core.DatasetBuilder:
    builder, data_dir = _builder(name, data_dir), _folder(data_dir)
    # Never let TFDS fetch it here: offline, that is minutes of retries.
    if not builder.info.splits:
        raise UserError(
            f"Data set {name!r} is not prepared in {data_dir}: run"
            f" {_prepare_command(name, data_dir)}, or point TFDS_DATA_DIR or data.data_dir to the"
            f" folder that has it.{_other_version(name, data_dir)}"
        )
    formats = _choose_format(builder.info)
    if FILE_FORMAT not in formats:
        raise UserError(
            f"Data set {name!r} is in {data_dir} as {' and '.join(sorted(formats))}, and only"
            f" {FILE_FORMAT} can be read at random: {_prepare_command(name, data_dir)} converts"
            " it, without a download."
        )
    return builder


def _choose_format(info: tfds.core.DatasetInfo) -> set[str]:
    """The formats that a set's files are there in, of which FILE_FORMAT is the one to read."""
    # `available_file_formats` leaves some out for sets that TFDS has code for.
    proto = info.as_proto
    formats = {proto.file_format, *proto.alternative_file_formats}
    if FILE_FORMAT in formats:
        info.set_file_format(FILE_FORMAT, override=True, override_if_initialized=True)
    return formats


def _check_files(builder: tfds.core.DatasetBuilder, name: str, split: str, data_dir: str) -> None:
    lacking = _lacking(builder.info, split)
    if lacking:
        raise UserError(
            f"Split {split!r} of {name} lacks {lacking[0]} ({len(lacking)} files in all): copy it"
            f" there, or run {_prepare_command(name, _folder(data_dir))}."
        )


def _lacking(info: tfds.core.DatasetInfo, split: str) -> list[str]:
    """The paths of the files that a prepared split should have and has not."""
    files = [Path(part.filename) for part in info.splits[split].file_instructions]
    return [str(file) for file in files if not file.exists()]


def _prepare_command(name: str, data_dir: str) -> str:
    full_name = _with_version(name, data_dir)
    return f"`make prepare DATASET={full_name} TFDS_DATA_DIR={shlex.quote(data_dir)}`"


def _with_version(name: str, data_dir: str) -> str:
    """`name` with its newest whole version, if it has none and TFDS has no code to name one.

    TFDS itself would take the newest folder, even an empty one.
    """
    if ":" in name:
        return name
    with contextlib.suppress(tfds.core.DatasetNotFoundError):
        tfds.builder_cls(name.partition("/")[0])
        return name
    versions = _whole_versions(Path(data_dir, name))
    return f"{name}:{versions[-1]}" if versions else name


def _other_version(name: str, data_dir: str) -> str:
    base = name.partition(":")[0]
    versions = _whole_versions(Path(data_dir, base))
    if not versions:
        return ""
    return f" Version {versions[-1]} is there: data.name={base}:{versions[-1]} reads it."


def _whole_versions(folder: Path) -> list[str]:
    """The versions of a set of which every file is there, oldest first."""
    versions = [str(version) for version in list_all_versions(folder)]
    return [version for version in versions if _is_whole(folder / version)]


def _is_whole(folder: Path) -> bool:
    try:
        info = tfds.builder_from_directory(folder).info
    except Exception:  # As many kinds as there are kinds of half-made sets.
        return False
    _choose_format(info)
    return bool(info.splits) and not any(_lacking(info, split) for split in info.splits)


def _folder(data_dir: str) -> str:
    data_dir = data_dir or os.environ.get("TFDS_DATA_DIR", "") or str(tfds.core.constants.DATA_DIR)
    if re.match(r"\w[\w+.\-]*:/", data_dir):
        raise UserError(
            "Expected a folder on a disk in data.data_dir or TFDS_DATA_DIR, where images can be"
            f" read at random, got {data_dir}. Copy the prepared set to a disk."
        )
    try:
        return str(Path(data_dir).expanduser().absolute())
    except RuntimeError as error:  # A user without a home.
        raise UserError(
            f"Cannot find {data_dir}: {error} Give data.data_dir or TFDS_DATA_DIR."
        ) from error


def _keys(builder: tfds.core.DatasetBuilder) -> tuple[str, str]:
    """The names of image and label among the features."""
    keys = builder.info.supervised_keys
    return keys if keys and len(keys) == 2 else ("image", "label")


def _shape_and_classes(
    builder: tfds.core.DatasetBuilder,
) -> tuple[tuple[int | None, int | None, int], int]:
    """Image shape, with None for a size that varies, and the number of classes.

    Raises UserError unless there are uint8 images with one class label each.
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
