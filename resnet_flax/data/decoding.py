"""Decodes images and cuts boxes from them, in worker processes.

Only the pixels that are needed are decoded, and each crop is resized once. This file alone imports
OpenCV and simplejpeg: they take a while, and a set in memory needs neither.
"""

import io
import math

import cv2
import numpy as np
import simplejpeg
from PIL import Image

from resnet_flax.data.crops import Cut

_BLANK = np.full((1, 1, 3), 128, np.uint8)  # Stands for what cannot be decoded at all.


def use_one_core() -> None:
    """A worker process is one of several."""
    cv2.setNumThreads(1)


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
