"""Times the input of `input_pipeline.py` with tf.data. Imports only TensorFlow."""

import functools
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import tensorflow as tf


def scale_window(shape: tf.Tensor, size: int, shorter: Sequence[int]) -> tf.Tensor:
    """Window [top, left, height, width] that becomes a crop of `size` at a random shorter side."""
    side = tf.random.uniform([], shorter[0], shorter[1] + 1, tf.int32)
    length = tf.maximum(1, size * tf.reduce_min(shape[:2]) // side)
    top = tf.random.uniform([], 0, shape[0] - length + 1, tf.int32)
    left = tf.random.uniform([], 0, shape[1] - length + 1, tf.int32)
    return tf.stack([top, left, length, length])


def inception_window(shape: tf.Tensor) -> tf.Tensor:
    """Window [top, left, height, width] of 8 to 100 % of the area, with a ratio of 3/4 to 4/3."""
    begin, size, _ = tf.image.sample_distorted_bounding_box(
        shape,
        tf.zeros([1, 0, 4]),
        min_object_covered=0.0,
        aspect_ratio_range=(3 / 4, 4 / 3),
        area_range=(0.08, 1.0),
        max_attempts=10,
        use_image_if_no_bounding_boxes=True,
    )
    return tf.concat([begin[:2], size[:2]], 0)


def main(case: dict[str, Any]) -> None:
    cores, size = case["cores"], case["size"]
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    tf.config.threading.set_intra_op_parallelism_threads(cores)
    tf.config.threading.set_inter_op_parallelism_threads(cores)
    scaled = functools.partial(scale_window, size=size, shorter=case["shorter"])
    window = scaled if case["crop"] == "scale" else inception_window

    def crop(path: tf.Tensor) -> tf.Tensor:
        encoded = tf.io.read_file(path)
        found = window(tf.io.extract_jpeg_shape(encoded))
        image = tf.image.decode_and_crop_jpeg(encoded, found, channels=3)
        return tf.cast(tf.image.resize(image, (size, size)), tf.uint8)

    paths = tf.data.Dataset.from_tensor_slices(sorted(map(str, Path(case["folder"]).iterdir())))
    options = tf.data.Options()
    options.threading.private_threadpool_size = cores
    batches = iter(
        paths.repeat()
        .map(crop, num_parallel_calls=tf.data.AUTOTUNE if cores > 1 else None)
        .batch(case["batch_size"])
        .prefetch(2 if cores > 1 else 0)
        .with_options(options)
    )
    next(batches)
    print("{}", flush=True)
    for _ in sys.stdin:
        for _ in range(case["drained"] if cores > 1 else 0):
            next(batches)
        start = time.perf_counter()
        for _ in range(case["timed"]):
            next(batches)
        print((time.perf_counter() - start) / case["timed"] * 1e3, flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
