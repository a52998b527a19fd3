"""Crops of encoded images, cut from the pixels that are needed and resized once.

H, W: height and width of the encoded image; S: side of a crop. All is NumPy, for worker processes.
"""

import io
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import cv2
import numpy as np
import simplejpeg
from PIL import Image

# Uniform numbers in [0, 1) that a training crop may use up.
DRAWS = 22
_INCEPTION_TRIES = 10
_BLANK = np.full((1, 1, 3), 128, np.uint8)  # Stands for what cannot be decoded at all.


class Box(NamedTuple):
    """A part of an image, in whole pixels."""

    top: int
    left: int
    height: int
    width: int


# (H, W) -> the boxes to cut.
Cut = Callable[[int, int], Sequence[Box]]


def scale_crop(
    height: int, width: int, *, size: int, shorter: tuple[int, int], draws: np.ndarray
) -> list[Box]:
    """Sec. 3.4: the shorter side resized to a random length in `shorter`, a random crop of `size`.

    The box is where that crop lies in the image as it is, to a pixel. `draws` [DRAWS] float64.
    """
    low, high = shorter
    length = low + int(draws[0] * (high - low + 1))
    side = _side(height, width, size, length)
    return [_at(height, width, side, side, draws[1], draws[2])]


def inception_crop(height: int, width: int, *, draws: np.ndarray) -> list[Box]:
    """Szegedy et al. (2015), Sec. 6: 8 to 100 % of the area, aspect ratio 3/4 to 4/3.

    Ten attempts at what fits; then the largest centred crop of such a ratio. `draws` [DRAWS].
    """
    for area, ratio in draws[2:].reshape(_INCEPTION_TRIES, 2):
        pixels = (0.08 + 0.92 * area) * height * width
        aspect = 3 / 4 * (16 / 9) ** ratio
        h, w = round(math.sqrt(pixels / aspect)), round(math.sqrt(pixels * aspect))
        if 0 < h <= height and 0 < w <= width:
            return [_at(height, width, h, w, draws[0], draws[1])]
    h, w = min(height, round(width * 4 / 3)), min(width, round(height * 4 / 3))
    return [_at(height, width, h, w, 0.5, 0.5)]


def center_crop(height: int, width: int, *, size: int, shorter: int) -> list[Box]:
    """The shorter side resized to `shorter`, the crop of `size` in the middle."""
    side = _side(height, width, size, shorter)
    return [_at(height, width, side, side, 0.5, 0.5)]


def five_crops(height: int, width: int, *, size: int, shorter: int) -> list[Box]:
    """Krizhevsky et al. (2012), Sec. 4.1: four corners and the middle; mirrored, they are ten."""
    side = _side(height, width, size, shorter)
    places = ((0, 0), (0, 1), (1, 0), (1, 1), (0.5, 0.5))
    return [_at(height, width, side, side, *place) for place in places]


def whole(height: int, width: int) -> list[Box]:
    """All of the image."""
    return [Box(0, 0, height, width)]


def whole_shape(height: int, width: int, shorter: int) -> tuple[int, int]:
    """(H, W), the shorter side resized to `shorter` and the ratio of sides to sixths, at most 4.

    So a network is compiled for few shapes, 4:3 and 3:2 are kept as they are, and no image takes
    up all memory.
    """
    sixths = min(round(6 * max(height, width) / min(height, width)), 24)
    longer = round(shorter * sixths / 6)
    return (shorter, longer) if height <= width else (longer, shorter)


def _side(height: int, width: int, size: int, shorter: int) -> int:
    """Of a crop of `size` in an image whose shorter side is resized to `shorter`."""
    return max(1, round(size * min(height, width) / shorter))


def _at(height: int, width: int, h: int, w: int, down: float, right: float) -> Box:
    """A box of [h, w] at one of the places where it fits, named by two numbers in [0, 1]."""
    top, left = int(down * (height - h + 1)), int(right * (width - w + 1))
    return Box(min(top, height - h), min(left, width - w), h, w)


def read_size(encoded: bytes) -> tuple[int, int]:
    """(H, W) of an encoded image, read from a JPEG's header; (1, 1) if that cannot be told."""
    try:
        return simplejpeg.decode_jpeg_header(encoded)[:2]
    except ValueError:
        image, _ = _decode_other(encoded)
        return image.shape[:2]


def cut(encoded: bytes, boxes: Cut, out: np.ndarray) -> bool:
    """Decodes an image once and writes each of its boxes, resized, into `out` [n, h, w, 3] uint8.

    Grey, CMYK and other formats than JPEG become RGB. Returns whether the image is damaged: what
    can be decoded of it is used, and where nothing can, mid-grey.
    """
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(encoded)
    except ValueError:
        image, damaged = _decode_other(encoded)
        height, width, _ = image.shape
        found = boxes(height, width)
    else:
        found = boxes(height, width)
        shrink = min(min(b.height / out.shape[1], b.width / out.shape[2]) for b in found)
        image, damaged = _decode_jpeg(encoded, height, width, shrink)
    down, right = image.shape[0] / height, image.shape[1] / width
    for box, crop in zip(found, out, strict=True):
        top, left = int(box.top * down), int(box.left * right)
        bottom = max(top + 1, round((box.top + box.height) * down))
        end = max(left + 1, round((box.left + box.width) * right))
        _resize(image[top:bottom, left:end], crop)
    return damaged


def _resize(part: np.ndarray, out: np.ndarray) -> None:
    height, width, _ = out.shape
    # The mean over what falls on a pixel takes six times as long, and matters from a half on; a
    # JPEG has been shrunk by its decoder then.
    shrink = min(part.shape[0] / height, part.shape[1] / width)
    how = cv2.INTER_AREA if shrink >= 2 else cv2.INTER_LINEAR
    cv2.resize(part, (width, height), dst=out, interpolation=how)


def _decode_jpeg(encoded: bytes, height: int, width: int, shrink: float) -> tuple[np.ndarray, bool]:
    """RGB, at a half, a quarter or an eighth where `shrink` allows, and whether it is damaged."""
    # Fractions between 1/2 and 1 take longer to decode than the whole.
    least = (math.ceil(height / shrink), math.ceil(width / shrink)) if shrink >= 2 else (0, 0)
    for strict in (True, False):
        try:
            image = simplejpeg.decode_jpeg(
                encoded,
                min_height=least[0],
                min_width=least[1],
                min_factor=2 if shrink >= 2 else 1,
                strict=strict,
            )
            return image, not strict
        except ValueError:
            continue
    return _BLANK, True


def _decode_other(encoded: bytes) -> tuple[np.ndarray, bool]:
    try:
        image: Image.Image = Image.open(io.BytesIO(encoded))
        if image.mode.startswith("I"):  # 16 bits, which Pillow would cut off at 255.
            image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
        return np.asarray(image.convert("RGB")), False
    except Exception:  # From any of Pillow's decoders, on any bytes.
        return _BLANK, True
