"""Sets made of class folders: what is stored, what is left out, and what is refused."""

import io
import itertools
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import ExifTags, Image
from tensorflow_datasets.core import file_adapters
from tensorflow_datasets.proto import tf_example_pb2, tf_feature_pb2

from resnet_flax.data import class_folders, own_builder, own_images, pictures, sources, stream
from resnet_flax.errors import TryAgainError, UserError

CROPS = stream.Crops("scale", 32, (36, 60))


def pixels(number, shape=(8, 8, 3)):
    """Pixels of an image of its own."""
    return np.random.RandomState(number).randint(0, 256, shape).astype(np.uint8)


def save(path, image, **settings):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, **settings)
    return path


def fill(folder, classes=("cat", "dog"), count=4, first=0):
    """Class folders of PNG files, each of other pixels."""
    numbers = itertools.count(first)
    for label in classes:
        for i in range(count):
            save(folder / label / f"{i}.png", pixels(next(numbers)))
    return folder


def prepare(folder, data_dir, name="mine", share=None, seed=None, track=lambda items, *_: items):
    return own_images.prepare(folder, name, str(data_dir), share, seed, track)


def note(prepared, words):
    (line,) = (line for line in prepared.notes if words in line)
    return line


def test_small_images_keep_their_pixels_their_splits_and_the_names_of_their_classes(tmp_path):
    photos, names = tmp_path / "my photos", ["a dog", "cät", "馬"]
    fill(photos / "Train", names)
    fill(photos / "test", names, count=2, first=50)
    (photos / "test" / "a dog" / "deeper" / "still").mkdir(parents=True)
    (photos / "test" / "a dog" / "0.png").rename(photos / "test/a dog/deeper/still/0.PNG")
    prepared = prepare(photos, tmp_path / "sets")
    assert (prepared.counts, prepared.classes) == ({"train": 12, "test": 6}, names)
    assert (prepared.in_memory, prepared.notes) == (True, [])
    for split, first, count in (("train", 0, 4), ("test", 50, 2)):
        stored = sources.load_split("mine", split, str(tmp_path / "sets"))
        found = {
            (image.tobytes(), int(label))
            for image, label in zip(stored.images, stored.labels, strict=True)
        }
        assert found == {(pixels(first + i).tobytes(), i // count) for i in range(3 * count)}
    builder = tfds.builder("mine", data_dir=tmp_path / "sets")
    assert builder.info.features["label"].names == names


def test_one_letter_with_two_spellings_is_one_class(tmp_path):
    fill(tmp_path / "photos" / "train", ["caf\u00e9", "tea"])
    fill(tmp_path / "photos" / "val", ["cafe\u0301"], first=50)
    prepared = prepare(tmp_path / "photos", tmp_path)
    assert prepared.counts == {"train": 8, "validation": 4}
    assert set(sources.load_split("mine", "validation", str(tmp_path)).labels) == {0}


def test_classes_whose_names_are_no_utf8_stay_apart(tmp_path):
    names = [os.fsdecode(name) for name in (b"B\xe4r", b"B\xf6r")]
    prepared = prepare(fill(tmp_path / "photos", names), tmp_path)
    assert prepared.classes == [r"B\xe4r", r"B\xf6r"]


@pytest.mark.parametrize(
    "train, other, split",
    [
        ("train", "valid", "validation"),
        ("Training", "Testing", "test"),
        ("train", "VAL", "validation"),
    ],
)
def test_folders_of_splits_have_the_names_that_people_use(tmp_path, train, other, split):
    fill(tmp_path / "photos" / train)
    fill(tmp_path / "photos" / other, count=2, first=50)
    prepared = prepare(tmp_path / "photos", tmp_path)
    assert (prepared.counts, prepared.classes) == ({"train": 8, split: 4}, ["cat", "dog"])
    assert prepared.notes == []


def test_classes_that_all_hold_the_same_folders_are_asked_about(tmp_path):
    for first, session in ((0, "monday"), (50, "tuesday")):
        fill(tmp_path / "photos" / session, first=first)
    prepared = prepare(tmp_path / "photos", tmp_path)
    assert prepared.classes == ["monday", "tuesday"]
    assert note(prepared, "Are those the classes?").startswith("Each class has folders")
    assert "(cat, dog)" in note(prepared, "Are those the classes?")
    fill(tmp_path / "photos" / "wednesday", ["cow"], first=90)
    assert not any(
        "Are those" in line for line in prepare(tmp_path / "photos", tmp_path, "b").notes
    )


def test_images_that_are_all_grey_have_one_channel(tmp_path):
    for label, mode in itertools.product("ab", ("L", "1", "LA")):
        path = save(tmp_path / "photos" / label / "16 bits.png", np.full((8, 8), 9999, np.uint16))
        Image.fromarray(pixels(ord(label), (8, 8))).convert(mode).save(path.with_stem(mode))
    assert prepare(tmp_path / "photos", tmp_path).channels == 1
    assert sources.load_split("mine", "train", str(tmp_path)).image_shape == (8, 8, 1)
    save(tmp_path / "photos" / "a" / "colour.png", pixels(0))
    assert prepare(tmp_path / "photos", tmp_path, "mixed").channels == 3
    assert sources.load_split("mixed", "train", str(tmp_path)).image_shape == (8, 8, 3)


@pytest.mark.parametrize("size, in_memory", [((8, 64), True), ((8, 65), False)])
def test_only_small_images_of_one_size_are_for_memory(tmp_path, size, in_memory):
    for i in range(4):
        save(tmp_path / "photos" / "ab"[i % 2] / f"{i}.png", pixels(i, (*size, 3)))
    assert prepare(tmp_path / "photos", tmp_path).in_memory == in_memory


def turned():
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # A viewer turns it clockwise.
    return exif


@pytest.fixture(scope="module")
def varied(tmp_path_factory):
    """Files of many kinds, the set made of them, and its images by file."""
    root = tmp_path_factory.mktemp("varied")
    colour = np.repeat(np.repeat(pixels(1, (5, 7, 3)), 8, 0), 8, 1)  # 40 x 56, smooth for JPEG.
    image, grey = Image.fromarray(colour), np.arange(1600, dtype=np.uint16).reshape(40, 40) * 40
    clear = np.dstack([colour, np.where(np.arange(56) < 28, 0, 255) + np.zeros((40, 1))])
    a = root / "photos" / "train" / "a"
    kept = [
        save(a / "plain.jpg", colour, quality=95),
        save(a / "plain.webp", colour, lossless=True),
        save(a / "opaque.png", np.dstack([colour, np.full((40, 56), 255, np.uint8)])),
    ]
    for name, converted in (("grey.jpg", "L"), ("cmyk.jpg", "CMYK"), ("palette.png", "P")):
        image.convert(converted).save(a / name)
        kept.append(a / name)
    jpeg = save(a / "turned.jpg", colour, quality=95, exif=turned())
    changed = {
        jpeg: np.rot90(np.asarray(Image.open(jpeg)), -1),
        save(a / "turned.png", colour, exif=turned()): np.rot90(colour, -1),
        save(a / "deep.png", grey): np.repeat((grey // 257).astype(np.uint8)[..., None], 3, 2),
        save(a / "clear.png", clear.astype(np.uint8)): np.where(clear[..., 3:] > 0, colour, 255),
    }
    animated = {"save_all": True, "append_images": [image.rotate(90)], "lossless": True}
    changed[save(a / "moving.webp", colour, **animated)] = colour
    save(root / "photos" / "train" / "b" / "b.jpg", pixels(3, (30, 90, 3)))
    save(root / "photos" / "test" / "b" / "c.jpg", pixels(4, (90, 30, 3)))
    prepared = prepare(root / "photos", root)
    opened = stream.open_stream("mine", "train", CROPS, (0, 0, 0), str(root))
    return kept, changed, prepared, list(opened.encoded()), root


def test_images_of_varying_size_are_stored_as_they_are_where_every_reader_sees_the_same(varied):
    kept, changed, prepared, encoded, _ = varied
    assert not prepared.in_memory
    assert {path.read_bytes() for path in kept} < set(encoded)
    assert not {path.read_bytes() for path in changed} & set(encoded)


def test_other_images_are_stored_as_a_viewer_shows_them(varied):
    _, changed, prepared, encoded, root = varied
    for path, expected in changed.items():
        stored = pictures.encode(path, pictures.inspect(path))
        assert stored in encoded
        shown = np.asarray(Image.open(io.BytesIO(stored)).convert("RGB"), int)
        assert shown.shape == expected.shape, path
        assert np.abs(shown - expected).mean() < (3 if path.suffix == ".jpg" else 0.01), path
    assert note(prepared, "EXIF").endswith("2 (train/a/turned.jpg, train/a/turned.png)")
    for words in ("16-bit", "transparent", "animation"):
        assert ": 1 (" in note(prepared, words)
    # TFDS decodes all of them, too.
    assert len(list(tfds.data_source("mine", split="train", data_dir=root))) == len(encoded)


def test_what_is_no_image_of_a_class_is_left_out_and_told(tmp_path):
    photos = fill(tmp_path / "photos")
    (photos / "empty" / "inner").mkdir(parents=True)
    fill(photos / ".cache", ["x"])
    (photos / "cat" / "._0.png").touch()
    (photos / "cat" / "a.heic").touch()
    (photos / "README").touch()
    save(photos / "loose.png", pixels(99))
    (photos / "cat" / "none.png").touch()
    (photos / "cat" / "page.jpg").write_text("<html>")
    (photos / "dog" / "0.png").write_bytes((photos / "dog" / "1.png").read_bytes()[:100])
    half = save(photos / "cat" / "half.jpg", pixels(98, (64, 64, 3)))
    half.write_bytes(half.read_bytes()[:2000])
    os.mkfifo(photos / "dog" / "pipe.png")
    (photos / "dog" / "circle").symlink_to(photos)
    prepared = prepare(photos, tmp_path)
    assert (sum(prepared.counts.values()), prepared.classes) == (7, ["cat", "dog"])
    for words, paths in {
        "decoded": "5 (cat/half.jpg, cat/none.png, cat/page.jpg, ...)",
        "other kinds": "2 (README, cat/a.heic)",
        "hidden": "2 (cat/._0.png, .cache)",
        "without images": "1 (empty)",
        "outside": "1 (loose.png)",
        "lead back": "1 (dog/circle)",
    }.items():
        assert note(prepared, words).endswith(paths)


def test_a_folder_that_two_links_lead_to_leads_not_back(tmp_path):
    photos = fill(tmp_path / "photos", count=6)
    fill(tmp_path / "shared", ["more"], count=2, first=50)
    for link in ("one", "two"):
        (photos / "cat" / link).symlink_to(tmp_path / "shared" / "more")
    prepared = prepare(photos, tmp_path)
    assert sum(prepared.counts.values()) == 6 + 6 + 2 * 2
    assert not any("lead back" in line for line in prepared.notes)


def test_a_split_of_ours_is_a_share_of_each_class_and_parts_no_equal_files(tmp_path):
    photos = fill(tmp_path / "photos", count=8)
    fill(photos, ["one"], count=1, first=90)
    for i, j in itertools.product(range(8), range(3)):  # Four of each, in folders of two classes.
        shutil.copy(photos / "cat" / f"{i}.png", photos / ("cat", "dog")[j % 2] / f"copy{i}{j}.png")
    prepared = prepare(photos, tmp_path, share=0.25)
    splits = {
        split: sources.load_split("mine", split, str(tmp_path)) for split in ("train", "test")
    }
    train, test = ({image.tobytes() for image in split.images} for split in splits.values())
    assert not train & test
    assert {pixels(i).tobytes() for i in range(16)} | {pixels(90).tobytes()} == train | test
    assert set(splits["train"].labels) == {0, 1, 2} and set(splits["test"].labels) == {0, 1}
    assert 4 <= len(test) <= 6  # A quarter of 8 and of 16 different images; some are in both.
    assert ": 16 (" in note(prepared, "twice")
    assert ": 8 (" in note(prepared, "another class")


def test_a_file_that_is_in_two_splits_is_kept_and_told(tmp_path):
    fill(tmp_path / "photos" / "train")
    fill(tmp_path / "photos" / "test", count=2, first=3)  # 3 to 6: all of them are in train.
    prepared = prepare(tmp_path / "photos", tmp_path)
    assert prepared.counts == {"train": 8, "test": 4}
    assert ": 4 (test/cat/0.png, " in note(prepared, "train has the same file")
    assert ": 1 (test/cat/1.png)" in note(prepared, "another class")


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_same_files_and_seed_give_the_same_bytes_anywhere_and_another_seed_others(tmp_path):
    made = []
    for place, classes, seed in (("a", "xyz", 0), ("b/c", "zyx", 0), ("d", "xyz", 1)):
        photos = tmp_path / place / "photos"
        for label in classes:
            fill(photos, [label], count=8, first=ord(label) * 10)
        made.append(files_of(prepare(photos, tmp_path / place / "sets", seed=seed).folder))
    assert made[0] == made[1]
    assert made[0].keys() == made[2].keys() and made[0] != made[2]


def test_the_features_of_an_example_are_written_in_one_order(monkeypatch):
    # By default their order differs between processes. Of twenty it would hardly be this one.
    features = {f"feature{i}": tf_feature_pb2.Feature() for i in range(20)}
    example = tf_example_pb2.Example(features=tf_feature_pb2.Features(feature=features))
    ordered = example.SerializeToString(deterministic=True)
    monkeypatch.setattr(tfds.core.ExampleWriter, "write", lambda self, path, given: list(given))
    writer = own_builder._SameBytes(file_adapters.FileFormat.ARRAY_RECORD)
    assert writer.write("", [(0, example.SerializeToString())]) == [(0, ordered)]


def change(photos, case):
    """Makes a folder wrong in one way; returns it."""
    if case == "one class":
        shutil.rmtree(photos / "train" / "dog")
    elif case == "unknown class":
        (photos / "train" / "cat").rename(photos / "train" / "cats")
    elif case == "no test":
        shutil.rmtree(photos / "test")
    elif case == "empty test":
        shutil.rmtree(photos / "test")
        (photos / "test" / "cat").mkdir(parents=True)
    elif case == "undecodable test":
        for path in (photos / "test").rglob("*.png"):
            path.write_text("no image")
    elif case == "more than splits":
        fill(photos / "extra")
    elif case == "one image each":
        return fill(photos / "single", count=1)
    elif case == "no images":
        return photos / "test" / "cat"
    elif case == "a file":
        return photos / "test" / "cat" / "0.png"
    return photos / case if case == "missing" else photos


@pytest.mark.parametrize("given", [{"share": 0.1}, {"seed": 0}])
def test_a_share_of_a_folder_with_splits_is_refused_before_anything_is_written(tmp_path, given):
    fill(tmp_path / "photos" / "train")
    fill(tmp_path / "photos" / "val", count=2, first=50)
    with pytest.raises(UserError, match="only for a folder without .* has train and validation"):
        prepare(tmp_path / "photos", tmp_path / "sets", **given)
    assert not (tmp_path / "sets").exists()
    prepare(tmp_path / "photos" / "train", tmp_path / "sets", **given)  # The way out.


@pytest.mark.parametrize(
    "case, message",
    [
        ("missing", "got nothing there: .*missing"),
        ("a file", "got a file"),
        ("no images", "got none. Left out, images outside of class folders: 2"),
        ("one class", "two classes or more .* got one: 'cat'"),
        ("unknown class", "only classes of train in test, got 'cat'"),
        ("no test", "beside .*train. Add one, or give --folder=.*train"),
        ("empty test", "in .*/test/CLASS, got none"),
        ("undecodable test", "in .*/test/CLASS, got none. .*decoded: 4 "),
        ("more than splits", "got 'extra'. Move it out"),
        ("one image each", "a class with two different images"),
    ],
)
def test_a_folder_that_makes_no_set_is_refused_before_anything_is_written(tmp_path, case, message):
    photos = tmp_path / "photos"
    fill(photos / "train")
    fill(photos / "test", count=2, first=50)
    with pytest.raises(UserError, match=message) as error:
        prepare(change(photos, case), tmp_path / "sets")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "sets").exists()


@pytest.mark.parametrize(
    "name, message",
    [
        ("", "got ''"),
        ("My-Set", "got 'My-Set'"),
        ("a/b", "got 'a/b'"),
        ("mnist", "of its own that is named mnist"),
        ("digits", "digits is the set that comes along"),
    ],
)
def test_a_name_that_would_not_be_read_is_refused(tmp_path, name, message):
    with pytest.raises(UserError, match=message):
        prepare(fill(tmp_path / "photos"), tmp_path / "sets", name)
    assert not (tmp_path / "sets").exists()


def test_a_set_of_that_name_stays_as_it_is_until_it_is_deleted(tmp_path):
    photos, data_dir = fill(tmp_path / "photos"), tmp_path / "sets"
    before = files_of(prepare(photos, data_dir).folder)
    fill(photos, first=80)
    with pytest.raises(UserError, match="A set named mine exists.*delete its folder first: ") as e:
        prepare(photos, data_dir)
    assert files_of(data_dir / "mine" / "1.0.0") == before
    shutil.rmtree(str(e.value).rpartition(": ")[2])
    assert files_of(prepare(photos, data_dir).folder) != before


KILLED = """
import os, sys
from pathlib import Path
from resnet_flax.data import own_images

def track(items, what, count):
    yield from items
    if what == "writing test":
        os.kill(os.getpid(), 9)

own_images.prepare(Path(sys.argv[1]), "mine", sys.argv[2], None, None, track)
"""


def test_kill_9_leaves_nothing_that_is_read_and_the_same_command_again_makes_the_set(tmp_path):
    photos, data_dir = fill(tmp_path / "photos"), tmp_path / "sets"
    done = subprocess.run([sys.executable, "-c", KILLED, photos, data_dir], check=False)
    assert done.returncode == -9
    assert list((data_dir / "mine").iterdir())
    with pytest.raises(UserError, match="nor prepared in"):
        sources.load_split("mine", "train", str(data_dir))
    prepared = prepare(photos, data_dir)
    assert list((data_dir / "mine").iterdir()) == [prepared.folder]
    assert sources.load_split("mine", "train", str(data_dir)).size == prepared.counts["train"]


def test_two_commands_do_not_write_one_set(tmp_path):
    (tmp_path / "mine").mkdir()
    with own_builder._alone_in(tmp_path / "mine"), pytest.raises(TryAgainError, match="Another"):
        prepare(fill(tmp_path / "photos"), tmp_path)
    assert not list((tmp_path / "mine").iterdir())


def test_a_set_that_another_command_made_meanwhile_is_not_taken_for_this_one(tmp_path):
    photos = fill(tmp_path / "photos")

    def track(items, what, count):
        yield from items
        prepare(photos, tmp_path)

    with pytest.raises(UserError, match="A set named mine exists"):
        prepare(photos, tmp_path, track=track)


def test_a_file_that_vanishes_meanwhile_is_named_as_what_cannot_be_read(tmp_path):
    photos = fill(tmp_path / "photos")

    def track(items, what, count):
        yield from items
        (photos / "cat" / "0.png").unlink(missing_ok=True)

    with pytest.raises(UserError, match="Cannot read .*cat/0.png: No such file"):
        prepare(photos, tmp_path, track=track)


def test_a_file_that_changes_meanwhile_ends_the_command_without_a_set(tmp_path):
    photos = fill(tmp_path / "photos")

    def track(items, what, count):
        yield from items
        save(photos / "cat" / "0.png", pixels(77))

    with pytest.raises(UserError, match="cat/0.png changed after"):
        prepare(photos, tmp_path, track=track)
    assert not list((tmp_path / "mine").iterdir())


def test_each_class_keeps_an_image_for_training_though_it_shares_all_with_another():
    labels, digests = ["a", "a", "b"], [b"x", b"y", b"x"]
    for seed in range(8):
        chosen = class_folders.choose_test(labels, digests, 0.5, seed)
        for label in "ab":
            assert {d for one, d in zip(labels, digests, strict=True) if one == label} - chosen


def test_a_set_that_lost_a_file_is_to_be_made_again_from_its_images(tmp_path):
    photos, sets = fill(tmp_path / "photos"), tmp_path / "my sets"
    prepare(photos, sets)
    (lost, *_) = (sets / "mine" / "1.0.0").glob("mine-train.array_record*")
    lost.unlink()
    sources._load_split.cache_clear()
    with pytest.raises(UserError, match=f"delete {sets}/mine and make it again") as error:
        sources.load_split("mine", "train", str(sets))
    assert f"`make prepare FOLDER=photos NAME=mine TFDS_DATA_DIR='{sets}'`" in str(error.value)
    shutil.rmtree(sets / "mine")
    prepare(photos, sets)
    assert len(sources.load_split("mine", "train", str(sets)).images) == 6
