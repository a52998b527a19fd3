"""Finds the images of class folders: `FOLDER/CLASS/NAME.jpg` or `FOLDER/train/CLASS/NAME.jpg`."""

import collections
import hashlib
import os
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from resnet_flax.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp")
# A folder of this name, in any case, holds the class folders of this split.
_SPLITS = dict.fromkeys(("train", "training"), "train")
_SPLITS |= dict.fromkeys(("test", "testing"), "test")
_SPLITS |= dict.fromkeys(("val", "valid", "validation"), "validation")
_SHOWN = 3


class File(NamedTuple):
    """A file that is an image by its name."""

    path: Path
    split: str  # Empty if the folder has no splits.
    label: str  # The name of its class.


class Found(NamedTuple):
    """The images of a folder in a fixed order, and one line for each kind of thing left out."""

    files: list[File]
    notes: list[str]


def find(folder: Path) -> Found:
    """Finds the images of a folder. Raises UserError if there are none, or none of two classes."""
    if not folder.is_dir():
        what = "a file" if folder.exists() else "nothing there"
        raise UserError(
            f"Expected a folder that holds a folder for each class, got {what}: {folder}."
        )
    try:
        found = _find(folder, _split_folders(folder))
    except OSError as error:
        raise UserError(f"Cannot read {error.filename}: {error.strerror}.") from error
    check(folder, found)
    return found


def _split_folders(folder: Path) -> dict[Path, str]:
    """The folders that hold class folders, each with the name of its split."""
    folders = [child for child in _children(folder) if child.is_dir()]
    splits = {
        child: _SPLITS[child.name.lower()] for child in folders if child.name.lower() in _SPLITS
    }
    if "train" not in splits.values():
        return {folder: ""}
    others = [child.name for child in folders if child not in splits]
    if len(set(splits.values())) > 1:
        if others:
            raise UserError(
                f"Expected only train, test and validation beside {folder / 'train'}, got"
                f" {others[0]!r}. Move it out of {folder}."
            )
        return splits
    if not others:
        train = next(child for child, split in splits.items() if split == "train")
        raise UserError(
            f"Expected a folder named test or validation beside {train}. Add one, or give"
            f" --folder={train}: then a part of each class becomes the test split."
        )
    return {folder: ""}  # A class that is named train, among others.


def _find(folder: Path, splits: dict[Path, str]) -> Found:
    files: list[File] = []
    left_out = collections.defaultdict[str, list[Path]](list)
    for path in _children(folder):  # Beside the split folders, or beside the class folders.
        if path not in splits and not path.is_dir():
            _sort(path, left_out, "outside of class folders")
    for split_folder, split in splits.items():
        for child in _children(split_folder):
            if child.is_dir():
                paths = [path for path in _walk(child, left_out) if _sort(path, left_out)]
                files += [File(path, split, _class_name(child)) for path in paths]
                if not paths:
                    left_out["folders without images, so they are no classes"].append(child)
            elif split_folder != folder:
                _sort(child, left_out, "outside of class folders")
        left_out["hidden files and folders"] += _hidden(split_folder)
    if folder not in splits:
        left_out["hidden files and folders"] += _hidden(folder)
    notes = [told(f"Left out, {what}", paths, folder) for what, paths in left_out.items() if paths]
    if folder in splits:
        notes += _alike_inside(_children(folder))
    return Found(files, notes)


def _alike_inside(folders: Sequence[Path]) -> list[str]:
    """A line if all folders hold folders of the same names: perhaps those are the classes."""
    inside = [{c.name for c in _children(one) if c.is_dir()} for one in folders if one.is_dir()]
    if len(inside) < 2 or len(inside[0]) < 2 or any(names != inside[0] for names in inside):
        return []
    names = ", ".join(sorted(inside[0])[:_SHOWN])
    return [f"Each class has folders of the same names ({names}). Are those the classes?"]


def _sort(path: Path, left_out: dict[str, list[Path]], reason: str = "") -> bool:
    """Whether a file is an image that is used. Otherwise, adds it to what is left out."""
    is_image = path.suffix.lower() in SUFFIXES
    if is_image and not reason:
        return True
    left_out[f"images {reason}" if is_image else "files of other kinds"].append(path)
    return False


def _walk(folder: Path, left_out: dict[str, list[Path]]) -> Iterator[Path]:
    """The visible files below a folder, in a fixed order. Follows links, but no circle of them."""
    for where, folders, files in os.walk(folder, onerror=_raise, followlinks=True):
        here = Path(where)
        if _identity(here) in map(_identity, here.absolute().parents):
            left_out["links that lead back"].append(here)
            folders.clear()
            continue
        left_out["hidden files and folders"] += _hidden(here)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (here / name for name in sorted(files) if not name.startswith("."))


def _identity(folder: Path) -> tuple[int, int]:
    """The same for two paths if they lead to one folder."""
    found = folder.stat()
    return found.st_dev, found.st_ino


def _raise(error: OSError) -> None:
    raise error


def _children(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _hidden(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.name.startswith("."))


def _class_name(folder: Path) -> str:
    """A name that TFDS can store, which it does as a line of a file without outer spaces.

    One letter may have two Unicode spellings. Both become one class. So do names that differ only
    in their number of spaces. Bytes that are no UTF-8 stay apart: each is written as its number.
    """
    text = os.fsencode(folder.name).decode(errors="backslashreplace")
    return " ".join(unicodedata.normalize("NFC", text).split()) or "_"


def check(folder: Path, found: Found) -> None:
    """Raises UserError unless each split has images, of two classes or more in training."""
    of_split = collections.defaultdict[str, set[str]](set)
    for file in found.files:
        of_split[file.split].add(file.label)
    has_splits = "" not in of_split
    if not found.files or (has_splits and (len(of_split) < 2 or "train" not in of_split)):
        empty = "" if not of_split else "/test" if "train" in of_split else "/train"
        notes = "; ".join(found.notes) or "The folder is empty"
        raise UserError(
            f"Expected PNG, JPEG or WebP images in {folder}{empty}/CLASS, got none. {notes}."
        )
    trained = of_split["train" if has_splits else ""]
    if len(trained) == 1:
        raise UserError(
            f"Expected images of two classes or more in {folder}, got one: {min(trained)!r}. Give"
            " each class a folder of its own there."
        )
    for split, labels in of_split.items():
        if unknown := sorted(labels - trained):
            raise UserError(
                f"Expected only classes of train in {split}, got {unknown[0]!r}. A class has a"
                " folder of the same name in both."
            )


def told(what: str, paths: Sequence[Path], folder: Path) -> str:
    """A line such as `Left out, files of other kinds: 2 (cat/notes.txt, dog/notes.txt)`."""
    names = [str(path.relative_to(folder)) for path in paths[:_SHOWN]]
    return f"{what}: {len(paths):,} ({', '.join(names)}{', ...' if len(paths) > _SHOWN else ''})"


def choose_test(
    labels: Sequence[str], digests: Sequence[bytes], share: float, seed: int
) -> set[bytes]:
    """Chooses a share of the images of each class, by their content alone.

    Equal images are all chosen or none is. Each class keeps an image for training.
    """
    of_class = collections.defaultdict[str, set[bytes]](set)
    for label, digest in zip(labels, digests, strict=True):
        of_class[label].add(digest)
    chosen = set[bytes]()
    for images in of_class.values():
        ranked = sorted(images, key=lambda image: hashlib.sha256(b"%d " % seed + image).digest())
        count = max(1, round(share * len(ranked)))
        chosen.update(ranked[: min(count, len(ranked) - 1)])
    for images in of_class.values():
        if images <= chosen:  # Another class has them too.
            chosen.remove(min(images))
    return chosen
