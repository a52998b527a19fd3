import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from sklearn.datasets import load_digits

from resnet_flax.data import crops, sources, stream, workers
from resnet_flax.data.prepared import FILE_FORMAT
from resnet_flax.errors import UserError
from tests.prepared import needs_cifar10

CROPS = stream.Crops("scale", 4, (4, 4))


class Wide(tfds.core.GeneratorBasedBuilder):
    """28x20 grey images of 100 classes, with feature names of its own."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "scan": tfds.features.Image(shape=(28, 20, 1)),
                    "kind": tfds.features.ClassLabel(num_classes=100),
                }
            ),
            supervised_keys=("scan", "kind"),
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(1300), "test": self._generate_examples(7)}

    def _generate_examples(self, count):
        for i in range(count):
            scan = np.full((28, 20), i % 256, np.uint8)
            yield i, {"scan": Image.fromarray(scan), "kind": i % 100}


class Unlabelled(tfds.core.GeneratorBasedBuilder):
    """The first 20 images of a split of 60, all of another, have -1, as TFDS marks the unknown."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(4, 4, 3)),
                    "label": tfds.features.ClassLabel(num_classes=3),
                }
            )
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(20), "test": self._generate_examples(60)}

    def _generate_examples(self, unknown):
        for i in range(60):
            image = Image.fromarray(np.full((4, 4, 3), i, np.uint8))
            yield i, {"image": image, "label": -1 if i < unknown else i % 3}


@pytest.fixture(scope="module")
def wide_folder(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("tfds"))
    for builder in (Wide, Unlabelled):
        builder(data_dir=folder, file_format=FILE_FORMAT).download_and_prepare()
    return folder


def test_digits_are_scikit_learns_and_every_one_is_in_one_split():
    train, test = (sources.load_split("digits", split) for split in ("train", "test"))
    assert (len(train.images), len(test.images)) == (1536, 261)
    scans, labels = load_digits(return_X_y=True)
    ours = {
        (image.tobytes(), int(label))
        for split in (train, test)
        for image, label in zip(split.images, split.labels, strict=True)
    }
    theirs = {
        (np.round(scan * 15.9375).astype(np.uint8).tobytes(), int(label))
        for scan, label in zip(scans, labels, strict=True)
    }
    assert ours == theirs
    assert train.images.shape[1:] == (8, 8, 1)
    assert train.images.dtype == np.uint8
    assert train.images.max() == 255


def test_a_prepared_set_is_read_whole_by_name_with_its_own_feature_names(wide_folder):
    split = sources.load_split("wide", "train", wide_folder)
    assert split.images.shape == (1300, 28, 20, 1)
    assert split.num_classes == 100
    np.testing.assert_array_equal(np.sort(split.labels), np.sort(np.arange(1300) % 100))
    np.testing.assert_array_equal(split.images[:, 5, 5, 0] % 4, split.labels % 4)


def test_split_expressions_are_tfdss(wide_folder):
    first, rest = (
        sources.load_split("wide", split, wide_folder) for split in ("train[:300]", "train[300:]")
    )
    whole = sources.load_split("wide", "train", wide_folder)
    np.testing.assert_array_equal(np.concatenate([first.images, rest.images]), whole.images)


def test_nobody_can_change_the_images_that_others_get():
    split = sources.load_split("digits", "test")
    for shared in (split.images, split.labels):
        with pytest.raises(ValueError, match="read-only"):
            shared[:] = 0
    assert sources.load_split("digits", "test").images.any()


def test_the_variable_that_tfds_honours_names_the_folder(wide_folder, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", wide_folder)
    assert len(sources.load_split("wide", "test").images) == 7


def test_the_mean_is_of_each_pixel():
    images = np.random.RandomState(0).randint(0, 256, (50, 4, 3, 2)).astype(np.uint8)
    expected = images.mean(axis=0, dtype=np.float64)
    np.testing.assert_allclose(
        sources.Split(images, np.zeros(50), 2).image_mean(), expected, rtol=1e-6
    )  # float32


@pytest.mark.parametrize(
    "name, split, message",
    [
        (
            "cifar100",
            "train",
            "not prepared in .* run `make prepare DATASET=cifar100 TFDS_DATA_DIR=",
        ),
        ("no_such_set", "train", "Unknown data set data.name='no_such_set'"),
        ("wide", "validation", "Unknown split 'validation'. Should be one of"),
        ("wide", "train[:0]", "Expected images in split"),
        ("digits", "trian", "Unknown split 'trian'"),
        ("digits", "all[:50%]", "'all' does not support slice"),
        ("digits:1.0.0", "train", "Expected data.name=digits, .* got data.name=digits:1.0.0"),
        ("digits/small", "train", "Expected data.name=digits, .* got data.name=digits/small"),
    ],
)
def test_what_cannot_be_read_is_said_at_once_in_one_line(wide_folder, name, split, message):
    with pytest.raises(UserError, match=message) as error:
        sources.load_split(name, split, wide_folder)
    assert "\n" not in str(error.value)


def prepared(wide_folder, data_dir, name, version="1.0.0", **info):
    """A copy of `wide` under a name and a version of its own; `info` goes to dataset_info.json."""
    folder = Path(data_dir, name, version)
    shutil.copytree(Path(wide_folder, "wide", "1.0.0"), folder)
    for file in folder.glob("wide-*"):
        file.rename(file.with_name(file.name.replace("wide", name, 1)))
    path = folder / "dataset_info.json"
    path.write_text(
        json.dumps({**json.loads(path.read_text()), "name": name, "version": version, **info})
    )
    return folder


# TFDS has code for `wide`, registered by the class above, and none for `own`.
either = pytest.mark.parametrize("name, full_name", [("wide", "wide"), ("own", "own:1.0.0")])


@either
def test_tfrecord_is_said_with_the_command_that_converts_it(wide_folder, tmp_path, name, full_name):
    # With array_record files that it does not name, as an interrupted conversion leaves them.
    folder = prepared(wide_folder, tmp_path, name, fileFormat="tfrecord")
    for split in ("train", "test"):
        (folder / f"{name}-{split}.tfrecord-00000-of-00001").write_bytes(b"examples")
    command = f"`make prepare DATASET={full_name} TFDS_DATA_DIR={tmp_path}` converts it"
    with pytest.raises(UserError, match=f"as tfrecord, but only array_record .*{command}"):
        sources.load_split(name, "test", str(tmp_path))


@either
def test_array_record_files_are_read_where_tfrecord_is_the_sets_first_format(
    wide_folder, tmp_path, name, full_name
):
    formats = {"fileFormat": "tfrecord", "alternativeFileFormats": ["array_record"]}
    prepared(wide_folder, tmp_path, name, **formats)
    split = sources.load_split(name, "test", str(tmp_path))
    whole = sources.load_split("wide", "test", wide_folder)
    np.testing.assert_array_equal(split.images, whole.images)


def test_the_newest_whole_version_is_read(wide_folder, tmp_path):
    for version in ("0.9.0", "1.0.0", "1.0.1", "1.0.2"):
        prepared(wide_folder, tmp_path, "own", version)
    next((tmp_path / "own/1.0.1").glob("own-train*")).unlink()
    (tmp_path / "own/1.0.2/dataset_info.json").unlink()
    (tmp_path / "own/1.1.0").mkdir()
    opened = sources.open_split("own", "train", str(tmp_path))
    assert str(opened.builder.version) == "1.0.0"


def test_a_version_that_is_not_asked_for_is_named_and_can_be_asked_for(wide_folder, tmp_path):
    prepared(wide_folder, tmp_path, "wide", "0.9.0")
    for name in ("wide", "wide:2.0.0"):
        with pytest.raises(UserError, match="Version 0.9.0 is there: data.name=wide:0.9.0"):
            sources.load_split(name, "test", str(tmp_path))
    assert sources.load_split("wide:0.9.0", "test", str(tmp_path)).size == 7


def test_a_split_that_lacks_a_file_is_named_with_it_and_the_others_are_read(wide_folder, tmp_path):
    next(prepared(wide_folder, tmp_path, "wide").glob("wide-train*")).unlink()
    with pytest.raises(UserError, match="lacks .*wide-train.array_record-00000-of-"):
        sources.load_split("wide", "train", str(tmp_path))
    assert sources.load_split("wide", "test", str(tmp_path)).size == 7


def test_another_folder_in_the_variable_is_another_set(wide_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", wide_folder)
    sources.load_split("wide", "test")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(UserError, match=f"'wide' is not prepared in {tmp_path}"):
        sources.load_split("wide", "test")


def test_a_bucket_and_a_split_that_ends_before_it_begins_are_refused():
    with pytest.raises(UserError, match="folder on a disk .*got gs://sets"):
        sources.load_split("cifar10", "train", "gs://sets")
    for split in ("train[10:5]", "train[10:9]", "train[10:5]+test"):
        with pytest.raises(UserError, match=rf"in split '{re.escape(split)}' of digits, got none"):
            sources.load_split("digits", split)


@pytest.mark.parametrize(
    "first, second, count",
    [
        ("train", "test", 0),
        ("train[:92]", "train[80:120]", 12),
        ("train[:92]", "test+train[-10:]+train[90:]", 2),
        ("all", "test", 261),
        ("train+train", "train[:10]+train[5:20]", 20),
    ],
)
def test_images_in_both_splits_are_counted(first, second, count):
    assert sources.shared("digits", first, second) == count


@pytest.mark.parametrize("split, count", [("train", 20), ("test", 60)])
def test_labels_that_name_no_class_are_refused_when_read(wide_folder, split, count):
    message = rf"labels in 0\.\.2 in split '{split}' of unlabelled, got -1 .*: {count} of 60"
    with pytest.raises(UserError, match=message):
        sources.load_split("unlabelled", split, wide_folder)
    with pytest.raises(UserError, match=message):
        stream.open_stream("unlabelled", split, CROPS, (0, 0, 0), wide_folder)


def test_a_stream_finds_labels_that_its_sample_missed_before_a_step_sees_them(
    wide_folder, monkeypatch
):
    labels = [
        int(x["label"]) for x in tfds.data_source("unlabelled", split="train", data_dir=wide_folder)
    ]
    first = next(i for i in range(60) if -1 not in labels[i : i + 2])
    monkeypatch.setattr(stream, "_SAMPLE", 1)
    monkeypatch.setenv("RESNET_FLAX_WORKERS", "1")
    opened = stream.open_stream("unlabelled", f"train[{first}:]", CROPS, (0, 0, 0), wide_folder)
    plan = [(np.array([i, i + 1]), (1, 4, 4)) for i in range(0, opened.size - 1, 2)]
    load = stream.EvaluationBatches(opened, crops.whole, plan)
    seen: list[int] = []
    with (
        pytest.raises(UserError, match=r"labels in 0\.\.2 .*: [12] of 2 read"),
        workers.in_background(load, lambda batch: seen.extend(batch.labels), print) as batches,
    ):
        list(batches)
    assert seen and min(seen) >= 0


def test_a_label_beyond_the_classes_or_32_bits_is_refused():
    for label in (3, 2**32 + 1, -(2**63)):
        with pytest.raises(UserError, match=rf"got {label} "):
            sources.checked_labels(np.array([0, label, 2]), 3, "set", "train")


def test_sizes_and_classes_are_known_of_a_set_that_is_not_prepared(tmp_path):
    assert sources.describe("cifar100", str(tmp_path)) == ((32, 32, 3), 100)
    assert sources.describe("digits") == ((8, 8, 1), 10)


@needs_cifar10
def test_cifar10_has_its_known_mean():
    train = sources.load_split("cifar10", "train")
    assert np.bincount(train.labels).tolist() == [5000] * 10
    # The field's constants, (0.4914, 0.4822, 0.4465), are rounded to 4 digits.
    mean = train.image_mean().mean((0, 1)) / 255
    np.testing.assert_allclose(mean, [0.4914, 0.4822, 0.4465], atol=5e-5)


def test_images_of_varying_size_are_refused_in_words(varied_folder):
    with pytest.raises(UserError, match="got varying sizes"):
        sources.load_split("varied", "train", varied_folder)
