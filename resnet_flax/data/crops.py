"""Where crops lie in an image, as boxes of its pixels; `decoding.py` cuts them.

H, W: height and width of the encoded image; S: side of a crop.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

# Uniform numbers in [0, 1) that a training crop may use up.
DRAWS = 22
_INCEPTION_TRIES = 10


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
