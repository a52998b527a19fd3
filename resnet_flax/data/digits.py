"""scikit-learn's handwritten digits as a TFDS builder: real images without a download.

1,797 scans of 8x8 grey pixels in 10 classes (Alpaydin and Kaynak 1998, the test part of the UCI
set "Optical Recognition of Handwritten Digits").
"""

from collections.abc import Iterator
from importlib import metadata
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

TRAIN_IMAGES = 1536  # 12 batches of 128. The other 261 images are the test split.


def _table() -> np.ndarray:
    """What `sklearn.datasets.load_digits` reads: [1797, 65] float64, 64 pixels and the label.

    The import of scikit-learn takes more than a second.
    """
    file = metadata.distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")
    return np.loadtxt(str(file), delimiter=",")


class Digits(tfds.core.GeneratorBasedBuilder):
    """`image` [8, 8, 1] uint8, `label` in 0..9."""

    name = "digits"
    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(8, 8, 1)),
            "label": tfds.features.ClassLabel(num_classes=10),
        }
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features), supervised_keys=("image", "label")
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager  # Nothing to download.
        table = _table()
        images, labels = table[:, :-1], table[:, -1]
        # The scans have 17 grey levels, 0 to 16.
        images = np.round(images.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
        return {
            "train": self._generate_examples(images[:TRAIN_IMAGES], labels[:TRAIN_IMAGES]),
            "test": self._generate_examples(images[TRAIN_IMAGES:], labels[TRAIN_IMAGES:]),
        }

    def _generate_examples(
        self, images: np.ndarray, labels: np.ndarray
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            # A PIL image, because TFDS would need TensorFlow to encode an array.
            yield i, {"image": Image.fromarray(image[..., 0]), "label": int(label)}
