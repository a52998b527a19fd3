"""Chooses crops of an image, as boxes of its pixels; `decoding.py` cuts them.

H, W: height and width of the encoded image; S: side of a crop.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

# A training crop uses at most this many uniform numbers in [0, 1).
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
    """The crop of Sec. 3.4, as one box.

    The shorter side is resized to a random length in `shorter`. Then a crop of `size` is chosen at
    random. The box is the place of that crop in the original image, to a pixel. `draws` [DRAWS]
    float64.
    """
    low, high = shorter
    length = low + int(draws[0] * (high - low + 1))
    side = _side(height, width, size, length)
    return [_at(height, width, side, side, draws[1], draws[2])]


def inception_crop(height: int, width: int, *, draws: np.ndarray) -> list[Box]:
    """The crop of Szegedy et al. (2015), Sec. 6: 8 to 100 % of the area, aspect ratio 3/4 to 4/3.

    Ten attempts may find a crop that fits into the image. Otherwise it is the largest centred crop
    with such a ratio. `draws` [DRAWS] float64.
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
    """The crop of `size` in the middle, after the shorter side is resized to `shorter`."""
    side = _side(height, width, size, shorter)
    return [_at(height, width, side, side, 0.5, 0.5)]


def five_crops(height: int, width: int, *, size: int, shorter: int) -> list[Box]:
    """The corners and the middle (Krizhevsky et al. 2012, Sec. 4.1); with mirror images, ten."""
    side = _side(height, width, size, shorter)
    places = ((0, 0), (0, 1), (1, 0), (1, 1), (0.5, 0.5))
    return [_at(height, width, side, side, *place) for place in places]


def whole(height: int, width: int) -> list[Box]:
    """The whole image, as one box."""
    return [Box(0, 0, height, width)]


def whole_shape(height: int, width: int, shorter: int) -> tuple[int, int]:
    """The shape (H, W) to which a whole image is resized.

    The shorter side becomes `shorter`. The ratio of the sides is rounded to sixths, and is at most
    4. So few shapes are compiled, 4:3 and 3:2 stay exact, and no image fills the memory.
    """
    sixths = min(round(6 * max(height, width) / min(height, width)), 24)
    longer = round(shorter * sixths / 6)
    return (shorter, longer) if height <= width else (longer, shorter)


def _side(height: int, width: int, size: int, shorter: int) -> int:
    """The side in original pixels of a crop of `size`, if the shorter side becomes `shorter`."""
    return max(1, round(size * min(height, width) / shorter))


def _at(height: int, width: int, h: int, w: int, down: float, right: float) -> Box:
    """A box of [h, w] inside the image. `down` and `right`, in [0, 1], give its place."""
    top, left = int(down * (height - h + 1)), int(right * (width - w + 1))
    return Box(min(top, height - h), min(left, width - w), h, w)
