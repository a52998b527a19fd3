"""Writes images as a TFDS set of array_record files, without TensorFlow.

H, W, C: height, width, channels of an image.
"""

import contextlib
import fcntl
import io
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from resnet_flax.data import pictures, prepared
from resnet_flax.data.class_folders import File
from resnet_flax.data.pictures import Picture
from resnet_flax.errors import FaultError, TryAgainError, UserError, summary

Image = tuple[File, Picture]
Shape = tuple[int | None, int | None, int]
Track = Callable[[Iterable[Any], str, int], Iterable[Any]]


class _SameBytes(tfds.core.ExampleWriter):
    """Writes the features of an example in a fixed order. By default it changes by process."""

    def write(self, path: Path, examples: Iterable[tuple[Any, bytes]]) -> Any:
        parsed = ((key, tf_example_pb2.Example.FromString(example)) for key, example in examples)
        return super().write(
            path, ((key, example.SerializeToString(deterministic=True)) for key, example in parsed)
        )


class ClassFolders(
    tfds.core.GeneratorBasedBuilder,
    skip_registration=True,  # type: ignore[call-arg]
):
    """Images of class folders: `image` [H, W, C] uint8, `label`."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(
        self,
        name: str,
        images: dict[str, list[Image]],
        classes: list[str],
        shape: Shape,
        root: Path,
        track: Track,
        **kwargs: Any,
    ):
        self.name = name
        self._images = images
        self._classes = classes
        self._shape = shape
        self._root = root
        self._track = track
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=self._shape),
            "label": tfds.features.ClassLabel(names=self._classes),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="Images of class folders.",
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
        )

    def _example_writer(self) -> tfds.core.ExampleWriter:
        return _SameBytes(self.info.file_format)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager  # Nothing to download.
        return {split: self._generate_examples(split) for split in self._images}

    def _generate_examples(self, split: str) -> Iterator[tuple[bytes, dict[str, Any]]]:
        images = self._images[split]
        for file, picture in self._track(images, f"writing {split}", len(images)):
            image: Any
            if None in self._shape:
                image = io.BytesIO(pictures.encode(file.path, picture))
            else:
                image = pictures.read(file.path, picture, "L" if self._shape[2] == 1 else "RGB")
            # TFDS orders the images by their key: the same key in any place of the folder.
            key = os.fsencode(file.path.relative_to(self._root))
            yield key, {"image": image, "label": file.label}


def write(
    target: Path,
    images: dict[str, list[Image]],
    classes: list[str],
    shape: Shape,
    root: Path,
    track: Track,
) -> Path:
    """Writes a set, whole or not at all, and deletes what an interrupted command left.

    - `target`: its folder. The last part is its name.
    - `images`, `classes`: by split; the names of the labels, in their order.
    - `shape`: (H, W, C) of all images. H and W are None if images vary: files are stored unchanged.
    - `root`: the order of the images depends on their paths below this folder.

    Returns the folder of its files. Raises FaultError if it cannot be written.
    """
    try:
        target.mkdir(parents=True, exist_ok=True)
        with _alone_in(target):
            check_free(target)  # Another command may have been faster.
            for left in filter(_is_left_over, target.iterdir()):
                shutil.rmtree(left)
            builder = ClassFolders(
                target.name,
                images,
                classes,
                shape,
                root,
                track,
                data_dir=str(target.parent),
                file_format=prepared.FILE_FORMAT,
            )
            with tempfile.TemporaryDirectory() as downloads, _silence():
                builder.download_and_prepare(download_dir=downloads)
    except OSError as error:
        reason = error.strerror or summary(error)
        raise FaultError(
            f"Cannot write {target}: {reason}. Name another folder in TFDS_DATA_DIR."
        ) from error
    return target / str(ClassFolders.VERSION)


def check_free(target: Path) -> None:
    """Raises UserError if the folder holds a set, or anything else that is not left over."""
    if any(not _is_left_over(path) for path in target.glob("*")):
        raise UserError(
            f"A set named {target.name} exists. Choose another name, or delete its folder first:"
            f" {target}"
        )


def _is_left_over(path: Path) -> bool:
    """Whether an interrupted command left this. TFDS names a folder so until it is whole."""
    return path.name.startswith("incomplete.")


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Drops what TFDS prints: that it downloads, and bars of its own."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Locks a folder while this process lives. Raises TryAgainError if another process has it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # Some network disks cannot lock a folder.
            _lock(descriptor, folder)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise TryAgainError(f"Another process is writing {folder}. Wait until it ends.") from error
