"""Makes a set of class folders: finds the images, chooses the splits, and tells what it did."""

import collections
import contextlib
import re
import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import tensorflow_datasets as tfds

from resnet_flax.data import class_folders, own_builder, pictures, prepared
from resnet_flax.data.class_folders import File
from resnet_flax.data.digits import Digits
from resnet_flax.data.own_builder import Image, Track
from resnet_flax.data.pictures import Picture
from resnet_flax.errors import UserError, summary

# Images of one size, with no longer side, are kept in memory while a network trains on them.
LARGEST_IN_MEMORY = 64
# The share of each class that is for testing, if the folder has no splits.
TEST_SHARE = 0.2


class Prepared(NamedTuple):
    """A set that was written, and one line for each thing that a user should know."""

    folder: Path
    counts: dict[str, int]  # Images by split.
    classes: list[str]
    sizes: list[tuple[int, int]]  # (H, W) of each image, from the shortest side to the longest.
    channels: int
    in_memory: bool  # Whether all have one small size.
    notes: list[str]


def prepare(
    folder: Path,
    name: str,
    data_dir: str,
    test_share: float | None,
    seed: int | None,
    track: Track,
) -> Prepared:
    """Writes the set `name` from the class folders of `folder`.

    - `data_dir`: the folder of prepared sets, as in `sources.load_split`.
    - `test_share`, `seed`: choose the test images if `folder` has no splits. None: TEST_SHARE, 0.
    - `track`: shows progress. It takes items, what is done with them, and their number.

    The set appears whole or not at all. The same files and seed give the same bytes.
    Raises UserError for a wrong name or folder, and for a share or seed that would have no effect;
    FaultError if the set cannot be written.
    """
    target = Path(prepared.data_folder(data_dir), name)
    _check_name(name, target)
    found = class_folders.find(folder)
    splits = sorted({file.split for file in found.files})
    if splits != [""] and (test_share, seed) != (None, None):
        raise UserError(
            "Expected --test_share and --seed only for a folder without splits, but"
            f" {folder} has {' and '.join(splits)}. Leave the flags out, or give"
            " the folder of one split: a part of it then becomes the test split."
        )
    test_share, seed = TEST_SHARE if test_share is None else test_share, seed or 0
    with warnings.catch_warnings():
        # Pillow warns about images that it decodes all the same.
        warnings.filterwarnings("ignore", module="PIL")
        images, failed = _inspect(found.files, folder, track)
        notes = [*found.notes, *failed]
        class_folders.check(folder, class_folders.Found([file for file, _ in images], notes))
        if splits == [""]:
            images = _with_splits(images, test_share, seed)
            notes.append(f"Test images: {test_share:.0%} of each class, chosen with seed {seed}")
        sizes = sorted((picture.size for _, picture in images), key=lambda size: (min(size), size))
        in_memory = sizes[0] == sizes[-1] and max(sizes[0]) <= LARGEST_IN_MEMORY
        channels = 1 if in_memory and all(picture.is_grey for _, picture in images) else 3
        shape = (*sizes[0], channels) if in_memory else (None, None, channels)
        by_split = _by_split(images)
        folder_of_set = own_builder.write(target, by_split, _classes(images), shape, folder, track)
    return Prepared(
        folder=folder_of_set,
        counts={split: len(images) for split, images in by_split.items()},
        classes=_classes(images),
        sizes=sizes,
        channels=channels,
        in_memory=in_memory,
        notes=[*notes, *_changed(images, folder), *_repeated(images, folder)],
    )


def _check_name(name: str, target: Path) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise UserError(
            f"Expected a name of a-z, 0-9 and _ that begins with a letter, such as my_photos, got"
            f" {name!r}."
        )
    if name == Digits.name:
        raise UserError(f"{name} is the set that comes along. Choose another name.")
    with contextlib.suppress(tfds.core.DatasetNotFoundError):
        tfds.builder_cls(name)
        raise UserError(f"TFDS has a set of its own that is named {name}. Choose another name.")
    own_builder.check_free(target)


def _inspect(files: list[File], folder: Path, track: Track) -> tuple[list[Image], list[str]]:
    """The images that can be decoded, in the same order, and a line about the others."""

    def inspect(file: File) -> Picture | str:
        try:
            return pictures.inspect(file.path)
        except Exception as error:  # Any of Pillow's decoders may raise any error on wrong bytes.
            return summary(error)

    with ThreadPoolExecutor() as pool:  # Pillow decodes without Python's lock.
        found = list(track(pool.map(inspect, files), "reading", len(files)))
    pairs = list(zip(files, found, strict=True))
    images = [(file, picture) for file, picture in pairs if isinstance(picture, Picture)]
    failed = [file.path for file, picture in pairs if isinstance(picture, str)]
    what = "Left out, images that cannot be decoded"
    return images, [class_folders.told(what, failed, folder)] if failed else []


def _with_splits(images: list[Image], share: float, seed: int) -> list[Image]:
    labels, digests = [file.label for file, _ in images], [picture.digest for _, picture in images]
    chosen = class_folders.choose_test(labels, digests, share, seed)
    if not chosen:
        raise UserError(
            "Expected a class with two different images or more that no other class has, got none."
        )
    return [
        (file._replace(split="test" if picture.digest in chosen else "train"), picture)
        for file, picture in images
    ]


def _by_split(images: list[Image]) -> dict[str, list[Image]]:
    by_split = collections.defaultdict[str, list[Image]](list)
    for image in images:
        by_split[image[0].split].append(image)
    return {
        split: by_split[split] for split in ("train", "validation", "test") if split in by_split
    }


def _classes(images: Iterable[Image]) -> list[str]:
    return sorted({file.label for file, _ in images})


def _changed(images: list[Image], folder: Path) -> list[str]:
    """A line for each kind of change to the pixels of images."""
    changed = collections.defaultdict[str, list[Path]](list)
    for file, picture in images:
        for change in picture.changes:
            changed[change].append(file.path)
    return [
        class_folders.told(f"Stored {change}", paths, folder) for change, paths in changed.items()
    ]


def _repeated(images: list[Image], folder: Path) -> list[str]:
    """Lines about files of equal content. They are kept: whoever made the folder knows why."""
    first: dict[bytes, File] = {}
    again = collections.defaultdict[str, list[Path]](list)
    for file, picture in sorted(images, key=lambda image: image[0].split != "train"):
        earlier = first.setdefault(picture.digest, file)
        if earlier is file:
            continue
        if earlier.label != file.label:
            again["Kept, though the same file has another class too"].append(file.path)
        if earlier.split != file.split:
            again[f"Kept, though {earlier.split} has the same file"].append(file.path)
        elif earlier.label == file.label:
            again["Kept, though the same file is there twice"].append(file.path)
    return [class_folders.told(what, paths, folder) for what, paths in again.items()]
