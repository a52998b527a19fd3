"""Checks whether two machines have the same data, without comparing all of it."""

import hashlib
from typing import Any

import numpy as np

from resnet_flax.data.sources import Split
from resnet_flax.data.stream import Stream

RECORDS = 32


def fingerprint(split: Split | Stream) -> dict[str, Any]:
    """The number of images and classes, and a digest of `RECORDS` records spread over the split."""
    places = np.linspace(0, split.size - 1, min(RECORDS, split.size)).astype(int)
    if isinstance(split, Stream):
        images, labels = split.read(places)
    else:
        images, labels = [image.tobytes() for image in split.images[places]], split.labels[places]
    sha = hashlib.sha256(labels.astype(np.int32).tobytes())
    for image in images:
        sha.update(image)
    sizes = {"images": split.size, "classes": split.num_classes}
    return {**sizes, "records": sha.hexdigest()[:12]}
