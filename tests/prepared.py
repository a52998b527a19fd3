"""Tests of data sets that somebody has to prepare."""

import os
from pathlib import Path

import pytest

needs_cifar10 = pytest.mark.skipif(
    not Path(os.environ.get("TFDS_DATA_DIR", ""), "cifar10").is_dir(),
    reason="TFDS_DATA_DIR has no cifar10",
)
