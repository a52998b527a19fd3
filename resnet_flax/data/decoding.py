"""Decodes images and cuts boxes from them, in worker processes.

An image is decoded no larger than its crops need, and each crop is resized once. Only this file
imports OpenCV and simplejpeg: the import is slow, and a set in memory does not need them.
"""

import io
import math

import cv2
import numpy as np
import simplejpeg
from PIL import Image

from resnet_flax.data.crops import Cut
from resnet_flax.data.pictures import in_8_bits

_BLANK = np.full((1, 1, 3), 128, np.uint8)  # Replaces an image that cannot be decoded at all.


def use_one_core() -> None:
    """Makes OpenCV use one core, because several worker processes run at once."""
    cv2.setNumThreads(1)


def read_size(encoded: bytes) -> tuple[int, int]:
    """(H, W) of an encoded image, for a JPEG from its header. (1, 1) if it cannot be decoded."""
    try:
        return simplejpeg.decode_jpeg_header(encoded)[:2]
    except ValueError:
        image, _ = _decode_other(encoded)
        return image.shape[:2]


def cut(encoded: bytes, boxes: Cut, out: np.ndarray) -> bool:
    """Decodes an image once and writes each of its boxes, resized, into `out` [n, h, w, 3] uint8.

    Grey and CMYK images and other formats than JPEG become RGB. Returns whether the image is
    damaged. Then the part that can be decoded is used, or mid-grey if there is none.
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
    # INTER_AREA, the mean over all pixels that fall on one, takes six times as long. It matters
    # only if the image shrinks to a half or less. The decoder has already shrunk such a JPEG.
    shrink = min(part.shape[0] / height, part.shape[1] / width)
    how = cv2.INTER_AREA if shrink >= 2 else cv2.INTER_LINEAR
    cv2.resize(part, (width, height), dst=out, interpolation=how)


def _decode_jpeg(encoded: bytes, height: int, width: int, shrink: float) -> tuple[np.ndarray, bool]:
    """The RGB image, and whether it is damaged.

    Its sides are a half, a quarter or an eighth of the original if `shrink` allows it.
    """
    # Decoding at a fraction between 1/2 and 1 takes longer than decoding the whole image.
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
        return np.asarray(in_8_bits(image).convert("RGB")), False
    except Exception:  # Any of Pillow's decoders may raise any error on wrong bytes.
        return _BLANK, True
