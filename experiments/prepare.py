"""Downloads and prepares a TFDS data set with TFDS's own builder, once.

make prepare DATASET=cifar10

Runs in an environment of its own, with TensorFlow, and imports nothing of this project.
"""

import logging
import sys

import tensorflow_datasets as tfds


def main(name: str) -> str | None:
    """Prepares the set in TFDS_DATA_DIR or TFDS's default folder; returns what went wrong."""
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # Of ten attempts to connect, the last.
    try:
        builder = tfds.builder(name, file_format="array_record")
        builder.download_and_prepare()
    except Exception as error:
        # All of it: where archives have to be fetched by hand, the end says which.
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return f"prepare: cannot prepare {name!r} ({reason})."
    print(f"{name} is prepared in {builder.data_path}.")
    return None


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
