import io

import cv2
import numpy as np
import pytest
import simplejpeg
from PIL import Image

from resnet_flax.data import crops, decoding
from resnet_flax.data.crops import Box
from tests import varied

DRAWS = np.random.RandomState(0).uniform(size=(300, crops.DRAWS))
EDGES = [np.zeros(crops.DRAWS), np.full(crops.DRAWS, 1 - 1e-12)]
SIZES = [(300, 200), (200, 300), (256, 256), (1, 1), (1000, 9), (7, 400)]


def boxes_of(kind, height, width, draws):
    if kind == "scale":
        return crops.scale_crop(height, width, size=224, shorter=(256, 480), draws=draws)
    if kind == "inception":
        return crops.inception_crop(height, width, draws=draws)
    if kind == "center":
        return crops.center_crop(height, width, size=224, shorter=256)
    return crops.five_crops(height, width, size=224, shorter=256)


@pytest.mark.parametrize("kind", ["scale", "inception", "center", "five"])
@pytest.mark.parametrize("height, width", SIZES)
def test_a_crop_lies_within_the_image(kind, height, width):
    for draws in [*DRAWS, *EDGES]:
        for box in boxes_of(kind, height, width, draws):
            assert box.height >= 1 and box.width >= 1
            assert 0 <= box.top <= height - box.height
            assert 0 <= box.left <= width - box.width


def test_the_papers_crop_is_a_square_of_224_once_the_shorter_side_is_256_to_480():
    boxes = [box for draws in DRAWS for box in boxes_of("scale", 600, 480, draws)]
    assert all(box.height == box.width for box in boxes)
    resized = [round(224 * 480 / box.height) for box in boxes]
    assert min(resized) in range(256, 262) and max(resized) in range(474, 482)
    # Uniform: the mean of 300 has a deviation of 3.7.
    assert np.mean(resized) == pytest.approx((256 + 480) / 2, abs=12)
    # Everywhere: at the ends as well as between.
    places = np.array([box.top / (600 - box.height) for box in boxes])
    assert np.histogram(places, bins=4, range=(0, 1))[0].min() > 50


def test_inceptions_crop_has_its_areas_and_ratios():
    boxes = [box for draws in DRAWS for box in boxes_of("inception", 300, 400, draws)]
    areas = np.array([box.height * box.width / (300 * 400) for box in boxes])
    ratios = np.array([box.width / box.height for box in boxes])
    # 1 %: sides are whole pixels.
    assert 0.079 < areas.min() < 0.15 and 0.8 < areas.max() <= 1
    assert ratios.min() > 0.75 * 0.99 and ratios.max() < 4 / 3 * 1.01
    assert ratios.min() < 0.8 and ratios.max() > 1.25


@pytest.mark.parametrize("kind", ["scale", "inception"])
def test_a_crops_place_and_size_are_drawn_apart(kind):
    draws = np.random.RandomState(1).uniform(size=(3000, crops.DRAWS))
    boxes = np.array([boxes_of(kind, 2000, 2000, row)[0] for row in draws])
    top, left, height, width = boxes.T
    down, right = top / np.maximum(2000 - height, 1), left / np.maximum(2000 - width, 1)
    apart = np.corrcoef([down, right, height * width])[np.triu_indices(3, 1)]
    # 0.08: 4 deviations of the correlation of 3,000 independent draws.
    assert abs(apart).max() < 0.08


def test_inceptions_crops_are_as_often_wide_as_high():
    draws = np.random.RandomState(1).uniform(size=(3000, crops.DRAWS))
    boxes = np.array([boxes_of("inception", 2000, 2000, row)[0] for row in draws])
    # 0.012: 4 deviations; a ratio that is uniform itself would have 0.028.
    assert abs(np.log(boxes[:, 3] / boxes[:, 2]).mean()) < 0.012


@pytest.mark.parametrize("draws, length", list(zip(EDGES, (256, 480), strict=True)))
def test_both_ends_of_the_shorter_sides_range_are_drawn(draws, length):
    (box,) = boxes_of("scale", 4800, 4800, draws)
    assert box.height == box.width == round(224 * 4800 / length)
    assert box.top == box.left == (0 if length == 256 else 4800 - box.height)


def test_where_no_attempt_fits_inceptions_crop_is_the_largest_in_the_middle():
    assert boxes_of("inception", 10, 1000, np.full(crops.DRAWS, 0.9)) == [Box(0, 494, 10, 13)]


def test_five_crops_are_the_corners_and_the_middle():
    # The shorter side of 512 is halved, so a crop of 224 has 448 pixels.
    expected = [Box(y, x, 448, 448) for y, x in [(0, 0), (0, 152), (64, 0), (64, 152), (32, 76)]]
    assert boxes_of("five", 512, 600, None) == expected
    assert boxes_of("center", 512, 600, None) == expected[-1:]


@pytest.mark.parametrize(
    "height, width, side, expected",
    [
        (375, 500, 224, (224, 299)),  # 4:3 as it is.
        (500, 375, 480, (640, 480)),
        (300, 300, 256, (256, 256)),
        (300, 310, 256, (256, 256)),
        (100, 150, 640, (640, 960)),
        (2, 3000, 224, (224, 896)),  # No more than 4.
    ],
)
def test_a_whole_image_keeps_its_ratio_to_a_sixth(height, width, side, expected):
    assert crops.whole_shape(height, width, side) == expected


def cut(encoded, box=None, shape=None):
    """(the crop, whether damaged) of one box; None: of all, unchanged in size."""
    height, width = decoding.read_size(encoded)
    box = box or Box(0, 0, height, width)
    out = np.full((1, *(shape or box[2:]), 3), 77, np.uint8)
    damaged = decoding.cut(encoded, lambda h, w: [box], out)
    return out[0], damaged


def by_pillow(encoded):
    return np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))


def mean_difference(a, b):
    return np.abs(a.astype(int) - b).mean()


@pytest.mark.parametrize("number", [0, varied.GREY, varied.CMYK, varied.PNG])
def test_any_kind_of_image_becomes_rgb_as_pillow_sees_it(number):
    encoded = varied.file_of(number)
    image, damaged = cut(encoded)
    assert not damaged
    # Two levels of 255 in the mean: another library's rounding, twice for CMYK.
    assert mean_difference(image, by_pillow(encoded)) < 2


def test_sixteen_bits_of_grey_become_eight():
    ramp = (np.arange(32 * 40, dtype=np.uint16) * 51).reshape(32, 40)
    file = io.BytesIO()
    Image.fromarray(ramp).save(file, "PNG")
    image, damaged = cut(file.getvalue())
    assert not damaged
    np.testing.assert_array_equal(image, np.stack([ramp // 257] * 3, -1))


def test_a_crop_is_what_pillow_cuts_and_resizes():
    encoded = varied.encoded(varied.pixels(1))
    box = Box(5, 8, 21, 24)
    image, _ = cut(encoded, box, (42, 48))
    pillow = Image.fromarray(by_pillow(encoded))
    expected = pillow.resize((48, 42), Image.BILINEAR, box=(8, 5, 32, 26))
    # One level of 255 in the mean: both interpolate linearly, and round differently.
    assert mean_difference(image, np.asarray(expected)) < 1


@pytest.mark.parametrize("shrink, eighths", [(1.5, 8), (2, 4), (3.9, 3), (4, 2), (20, 1)])
def test_an_image_is_decoded_no_larger_than_it_has_to_be(monkeypatch, shrink, eighths):
    image = cv2.resize(varied.pixels(2), (640, 480))
    encoded, box, shapes = varied.encoded(image), Box(80, 160, 320, 400), []
    decode = simplejpeg.decode_jpeg

    def noted(*args, **kwargs):
        shapes.append((found := decode(*args, **kwargs)).shape)
        return found

    monkeypatch.setattr(simplejpeg, "decode_jpeg", noted)
    shape = (round(320 / shrink), round(400 / shrink))
    small, damaged = cut(encoded, box, shape)
    assert shapes == [(60 * eighths, 80 * eighths, 3)] and not damaged
    expected = Image.fromarray(image).resize(shape[::-1], Image.BOX, box=(160, 80, 560, 400))
    # Two levels of 255 in the mean: a smooth image, shrunk in one step or in two.
    assert mean_difference(small, np.asarray(expected)) < 2


def test_a_truncated_image_is_used_as_far_as_it_goes_and_said_to_be_damaged():
    image, damaged = cut(varied.file_of(varied.TRUNCATED))
    whole = varied.pixels(varied.TRUNCATED)
    assert damaged
    assert mean_difference(image[:16], whole[:16]) < 3
    assert mean_difference(image[-8:], whole[-8:]) > 10


@pytest.mark.parametrize("encoded", [varied.file_of(varied.GARBAGE), b"", b"\xff\xd8\xff"])
def test_what_is_no_image_becomes_grey_and_is_said_to_be_damaged(encoded):
    image, damaged = cut(encoded, Box(0, 0, 1, 1), (6, 5))
    assert damaged
    np.testing.assert_array_equal(image, np.full((6, 5, 3), 128))
