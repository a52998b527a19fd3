"""A TFDS set of small images of varying size and kind, some of them damaged."""

import io

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from resnet_flax.data import prepared

TRAIN, VALIDATION = 45, 13  # The truncated image is in both, the one that is none in TRAIN.
# Positions do not follow the order of generation; labels say which image it is.
GREY, CMYK, PNG, TRUNCATED, GARBAGE = 3, 5, 7, 11, 13


def pixels(number):
    """A smooth image [H, W, 3] uint8 of a size and colours of its own."""
    height, width = 36 + 7 * number % 29, 36 + 11 * number % 37
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    tone = (number * 37 % 100) / 100
    channels = (0.5 + 0.5 * np.sin(4 * y + tone * 6), x, np.full_like(x, tone))
    return np.round(255 * np.stack(channels, -1)).astype(np.uint8)


def encoded(image, form="JPEG", mode="RGB"):
    file = io.BytesIO()
    settings = {"quality": 95, "subsampling": 0} if form == "JPEG" else {}
    Image.fromarray(image).convert(mode).save(file, form, **settings)
    return file.getvalue()


def file_of(number):
    if number == TRUNCATED:
        whole = encoded(pixels(number))
        return whole[: len(whole) * 3 // 4]
    if number == GARBAGE:
        return b"no image " * 20
    kinds = {GREY: ("JPEG", "L"), CMYK: ("JPEG", "CMYK"), PNG: ("PNG", "RGBA")}
    return encoded(pixels(number), *kinds.get(number, ()))


class Varied(tfds.core.GeneratorBasedBuilder):
    """Every image is a class of its own."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3)),
                    "label": tfds.features.ClassLabel(num_classes=TRAIN),
                }
            )
        )

    def _split_generators(self, dl_manager):
        return {
            "train": self._generate_examples(TRAIN),
            "validation": self._generate_examples(VALIDATION),
        }

    def _generate_examples(self, count):
        for number in range(count):
            yield number, {"image": io.BytesIO(file_of(number)), "label": number}


def prepare(folder):
    Varied(data_dir=folder, file_format=prepared.FILE_FORMAT).download_and_prepare()
