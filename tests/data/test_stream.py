import os
import signal
import time

import numpy as np
import psutil
import pytest

from resnet_flax.data import crops, stream
from resnet_flax.data.stream import Crops, EvaluationBatches, TrainingBatches
from resnet_flax.data.workers import in_background
from resnet_flax.errors import FaultError, UserError
from resnet_flax.runtime.cpu import WORKERS
from tests import varied

MEAN = (124.0, 116.0, 104.0)


@pytest.fixture(scope="module", params=["scale", "inception"])
def train(varied_folder, request):
    cut = Crops(request.param, 32, (36, 60))
    return stream.open_stream("varied", "train", cut, MEAN, varied_folder)


@pytest.fixture(scope="module")
def scaled(varied_folder):
    return stream.open_stream("varied", "train", Crops("scale", 32, (36, 60)), MEAN, varied_folder)


def batches(source, steps, per_dispatch=1, places=range(8), seed=0):
    load = TrainingBatches(source, seed, 8, np.array(places), steps, per_dispatch)
    return [load(number) for number in range(len(load))]


def joined(parts):
    return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]


def assert_equal(one, other):
    for a, b in zip(joined(one), joined(other), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_batch_depends_on_seed_and_step_alone(train):
    whole = batches(train, range(12))
    assert_equal(whole[5:], batches(train, range(5, 12)))
    # 12 steps in dispatches of 5, 5 and 2.
    assert_equal(whole, batches(train, range(12), per_dispatch=5))
    for other in (batches(train, range(12, 24)), batches(train, range(12), seed=1)):
        assert (joined(whole)[1] != joined(other)[1]).any()


def test_the_seed_decides_the_crops_besides_the_order(train, monkeypatch):
    def in_order(seed, step, batch_size, size):
        return np.arange(step * batch_size, (step + 1) * batch_size) % size

    monkeypatch.setattr(stream, "batch_indices", in_order)
    one, other = (joined(batches(train, range(4), seed=seed)) for seed in (0, 1))
    np.testing.assert_array_equal(one[1], other[1])
    equal = [np.array_equal(a, b) for a, b in zip(one[0], other[0], strict=True)]
    assert sum(equal) <= 2  # The image that is none is grey in any crop.


def test_the_processes_parts_are_the_batch(train):
    whole = batches(train, range(7))
    parts = [batches(train, range(7), places=places) for places in ((0, 1, 2), (3, 4), (5, 6, 7))]
    assert_equal(whole, [part for step in zip(*parts, strict=True) for part in step])


def test_every_image_is_seen_once_an_epoch_each_time_in_another_crop(train):
    labels, images = joined(batches(train, range(45)))[1], joined(batches(train, range(45)))[0]
    epochs = labels.reshape(8, varied.TRAIN)
    for epoch in epochs:
        assert sorted(epoch) == list(range(varied.TRAIN))
    seen = [image.tobytes() for image, label in zip(images, labels, strict=True) if label == 0]
    assert len(set(seen)) == 8


def test_a_crop_shows_the_image_that_its_label_names(scaled):
    images, labels, _ = joined(batches(scaled, range(6)))
    assert images.shape == (48, 1, 32, 32, 3) and images.dtype == np.uint8
    assert labels.dtype == np.int32
    special = (varied.GREY, varied.CMYK, varied.TRUNCATED, varied.GARBAGE)
    for (image,), label in zip(images, labels, strict=True):
        if label not in special:
            # The third channel is one tone; 3: JPEG.
            tone = varied.pixels(label)[0, 0, 2]
            np.testing.assert_allclose(image[..., 2], tone, atol=3)


def test_what_is_read_ahead_by_any_number_of_workers_is_in_order(scaled, monkeypatch):
    expected = batches(scaled, range(9), per_dispatch=2)
    for workers in "13":
        monkeypatch.setenv(WORKERS, workers)
        load = TrainingBatches(scaled, 0, 8, np.arange(8), range(9), 2)
        said: list[str] = []
        with in_background(load, lambda batch: batch, said.append) as found:
            assert_equal(expected, found)
        damaged = sorted(set(joined(expected)[2].tolist()) - {-1})
        labels = {i: scaled.read(np.array([i]))[1].item() for i in damaged}
        assert set(labels.values()) == {varied.TRUNCATED, varied.GARBAGE}
        assert said == [
            f"Damaged images in varied train: 2, at positions {damaged[0]}, {damaged[1]};"
            " the part of each that could be decoded is used."
        ]


def workers():
    """The processes of this one that read images."""
    return {p.pid for p in psutil.Process().children() if "spawn_main" in str(p.cmdline())}


def test_a_dead_worker_is_named_and_the_others_end(scaled, monkeypatch):
    monkeypatch.setenv(WORKERS, "2")
    before = workers()
    load = TrainingBatches(scaled, 0, 8, np.arange(8), range(10**5), 1)
    with (
        pytest.raises(
            FaultError, match=r"exit code -9\. .*RESNET_FLAX_WORKERS.*same command again"
        ),
        in_background(load, lambda batch: None, lambda line: None) as found,
    ):
        next(found)
        (worker, *_) = workers() - before
        os.kill(worker, signal.SIGKILL)
        for _ in found:
            pass
    end = time.monotonic() + 20
    while workers() - before and time.monotonic() < end:
        time.sleep(0.1)
    assert not workers() - before


def test_workers_end_though_no_batch_was_asked_for(scaled, monkeypatch):
    monkeypatch.setenv(WORKERS, "2")
    before = workers()
    load = TrainingBatches(scaled, 0, 8, np.arange(8), range(10**5), 1)
    with in_background(load, lambda batch: None, lambda line: None):
        while not workers() - before:
            time.sleep(0.01)
    assert not workers() - before


def test_a_signal_to_all_processes_is_not_the_workers_to_hear(scaled, monkeypatch):
    monkeypatch.setenv(WORKERS, "2")
    before = workers()
    load = TrainingBatches(scaled, 0, 8, np.arange(8), range(200), 1)
    with in_background(load, lambda batch: batch.labels, lambda line: None) as found:
        while not (begun := workers() - before):  # They take a second to import.
            time.sleep(0.01)
        for worker in begun:
            os.kill(worker, signal.SIGINT)
            os.kill(worker, signal.SIGTERM)
        assert len(list(found)) == 200


def test_an_evaluation_shows_each_image_whole_and_no_other_pixel(scaled):
    plan = [(np.array([4, 9]), (1, 20, 30)), (np.array([9]), (1, 40, 40))]
    load = EvaluationBatches(scaled, crops.whole, plan)
    first, second = (load(number) for number in range(len(load)))
    assert (first.images.shape, second.images.shape) == ((2, 1, 20, 30, 3), (1, 1, 40, 40, 3))
    assert first.labels.tolist() == [scaled.read(np.array([i]))[1].item() for i in (4, 9)]
    corners = second.images[0, 0, ::39, ::39, 1]
    # The second channel runs from 0 at the left to 255 at the right; 8: one pixel of 40.
    np.testing.assert_allclose(corners, [[0, 255], [0, 255]], atol=8)


def test_no_batch_is_no_error(scaled):
    load = TrainingBatches(scaled, 0, 8, np.arange(8), range(0), 1)
    with in_background(load, lambda batch: batch, print) as found:
        assert list(found) == []


@pytest.mark.parametrize("given", ["0", "-1", "many"])
def test_a_number_of_workers_that_makes_no_sense_is_refused(scaled, monkeypatch, given):
    monkeypatch.setenv(WORKERS, given)
    with pytest.raises(UserError, match=f"RESNET_FLAX_WORKERS.*got {given}"):
        stream.open_stream("digits", "test", scaled.crops, MEAN)
