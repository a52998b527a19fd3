"""`experiments/prepare.py` in its own environment, which `make prepare` makes."""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from resnet_flax.data import sources
from resnet_flax.errors import UserError

PYTHON = Path(".venv-prepare/bin/python").absolute()

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON.exists(), reason=f"no {PYTHON}: `make prepare` makes it"),
]

# TFDS has no code for this set; TFRecord is its default.
WRITE = """
import numpy as np
import tensorflow_datasets as tfds

def examples(count):
    for i in range(count):
        yield i, {"image": np.full((4, 4, 1), i, np.uint8), "label": i % 9}

tfds.dataset_builders.store_as_tfds_dataset(
    name="own",
    version="1.0.0",
    features=tfds.features.FeaturesDict({
        "image": tfds.features.Image(shape=(4, 4, 1)),
        "label": tfds.features.ClassLabel(num_classes=9),
    }),
    split_datasets={"train": examples(50), "test": examples(7)},
    disable_shuffling=True,
)
"""


def run(data_dir: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PYTHON, *arguments],
        env={**os.environ, "TFDS_DATA_DIR": str(data_dir)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def folder(tmp_path):
    written = run(tmp_path, "-c", WRITE)
    assert written.returncode == 0, written.stderr
    return tmp_path / "own" / "1.0.0"


def test_a_tfrecord_set_is_converted_once_and_read(folder, tmp_path):
    # As an interrupted conversion leaves them.
    (folder / "own-train.array_record-00000-of-00001").write_bytes(b"half")
    (folder / f"incomplete.{32 * '0'}.own-test.array_record-00000-of-00001").touch()
    with pytest.raises(UserError, match="`make prepare DATASET=own:1.0.0"):
        sources.load_split("own", "train", str(tmp_path))

    converted = run(tmp_path, "experiments/prepare.py", "own")
    assert converted.returncode == 0, converted.stderr
    split = sources.load_split("own", "train", str(tmp_path))
    assert split.images[:, 0, 0, 0].tolist() == list(range(50))
    np.testing.assert_array_equal(split.labels, np.arange(50) % 9)
    assert sources.load_split("own", "test", str(tmp_path)).size == 7
    assert not list(folder.glob("incomplete.*"))

    files = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert run(tmp_path, "experiments/prepare.py", "own").returncode == 0
    assert {file: file.stat().st_mtime_ns for file in folder.iterdir()} == files


def test_a_set_that_lacks_a_file_stays_as_it_is(folder, tmp_path):
    (folder / "own-train.tfrecord-00000-of-00001").unlink()
    files = set(folder.iterdir())
    refused = run(tmp_path, "experiments/prepare.py", "own")
    assert refused.returncode == 1
    assert "lacks own-train.tfrecord-00000-of-00001" in refused.stderr.splitlines()[-1]
    assert set(folder.iterdir()) == files


def test_a_folder_that_holds_no_set_is_not_said_to_be_prepared(tmp_path):
    folder = tmp_path / "mnist" / "3.0.1"
    folder.mkdir(parents=True)
    (folder / "features.json").touch()
    refused = run(tmp_path, "experiments/prepare.py", "mnist")
    assert refused.returncode == 1
    assert "has no dataset_info.json: delete it" in refused.stderr.splitlines()[-1]
