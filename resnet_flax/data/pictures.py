"""Reads image files as a viewer shows them: upright, without transparency, 8 bits a channel."""

import hashlib
import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps

from resnet_flax.errors import UserError

_FORMATS = ("JPEG", "PNG", "WEBP")
_QUALITY = 95  # Of a JPEG that is turned.


class Picture(NamedTuple):
    """An image file that can be decoded."""

    digest: bytes  # SHA-256 of the file.
    size: tuple[int, int]  # (H, W) in pixels, upright.
    is_grey: bool
    changes: tuple[str, ...]  # How it is stored, if not as it is.


def inspect(path: Path) -> Picture:
    """Decodes a file. Raises any error if it cannot be read, or is no JPEG, PNG or WebP."""
    if not path.is_file():  # A pipe, or a link to nothing. Reading a pipe would wait forever.
        raise FileNotFoundError("no file")
    encoded = path.read_bytes()
    with Image.open(io.BytesIO(encoded), formats=_FORMATS) as image:
        width, height = image.size
        image.draft(image.mode, (1, 1))  # Decodes a JPEG at an eighth of its size, to save time.
        image.load()
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
        size = (width, height) if orientation in (5, 6, 7, 8) else (height, width)
        changes = {
            "upright, as EXIF says": orientation in range(2, 9),
            "on white, because transparent": _is_transparent(image),
            "with 8 bits, of 16-bit grey": image.mode.startswith("I"),
            "as the first frame, of an animation": _is_animated(image),
        }
        is_grey = image.mode.startswith(("1", "L", "I")) and image.mode != "LAB"
    digest = hashlib.sha256(encoded).digest()
    return Picture(digest, size, is_grey, tuple(what for what, found in changes.items() if found))


def read(path: Path, picture: Picture, mode: str) -> Image.Image:
    """The image as a viewer shows it, in mode `L` or `RGB`."""
    with Image.open(io.BytesIO(_encoded(path, picture))) as image:
        return _as_shown(image, mode)


def encode(path: Path, picture: Picture) -> bytes:
    """The file as it is. If its pixels have to be changed: the changed image as JPEG or PNG."""
    encoded = _encoded(path, picture)
    if not picture.changes:
        return encoded
    file = io.BytesIO()
    with Image.open(io.BytesIO(encoded)) as image:
        shown = _as_shown(image, "L" if picture.is_grey else "RGB")
        if image.format in ("JPEG", "MPO"):
            shown.save(file, "JPEG", quality=_QUALITY, subsampling=0)
        else:
            shown.save(file, "PNG")
    return file.getvalue()


def _encoded(path: Path, picture: Picture) -> bytes:
    try:
        encoded = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"Cannot read {path}: {error.strerror}. It was read before: give the same command"
            " again."
        ) from error
    if hashlib.sha256(encoded).digest() != picture.digest:
        raise UserError(f"{path} changed after it was read first. Give the same command again.")
    return encoded


def in_8_bits(image: Image.Image) -> Image.Image:
    """The image, with grey of 16 bits scaled to 8. Pillow would clip the values at 255."""
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image) // 257).astype(np.uint8))


def _as_shown(image: Image.Image, mode: str) -> Image.Image:
    shown = in_8_bits(ImageOps.exif_transpose(image))
    if shown.has_transparency_data:
        page = Image.new("RGBA", shown.size, "white")
        page.alpha_composite(shown.convert("RGBA"))
        shown = page
    return shown.convert(mode)


def _is_transparent(image: Image.Image) -> bool:
    """Whether any pixel is transparent. Many images have an alpha channel that is opaque."""
    if image.mode.startswith("I") or not image.has_transparency_data:
        return False
    return image.convert("RGBA").getchannel("A").getextrema()[0] < 255


def _is_animated(image: Image.Image) -> bool:
    # A camera's MPO has a preview as its second frame.
    return image.format != "MPO" and getattr(image, "n_frames", 1) > 1
