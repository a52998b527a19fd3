import functools

import jax
import numpy as np
import pytest

from resnet_flax.data import crops, decoding, stream
from resnet_flax.data.augment import normalize
from resnet_flax.data.stream import Crops
from resnet_flax.models.blocks import BasicBlock
from resnet_flax.models.resnet import ResNet
from resnet_flax.runtime.parallel import Devices
from resnet_flax.training import optim, steps, views
from resnet_flax.training.views import Views
from tests import varied

MEAN = np.array([[[124, 116, 104]]], np.float32)
pytestmark = pytest.mark.usefixtures("one_worker")
CLASSES = varied.TRAIN


def test_what_is_not_finite_is_an_error_and_a_certain_mistake_has_a_finite_loss():
    probabilities = np.array([[1, 0], [0.25, 0.75], [np.nan, np.nan]], np.float32)
    scores = views._scores(probabilities[:2], np.array([1, 1]))
    # The smallest normal float32 stands for 0.
    assert scores == {"loss": (np.log(2.0**126) - np.log(0.75)) / 2, "error": 0.5, "images": 2}
    assert views._scores(probabilities, np.array([0, 1, 0]))["error"] == 1 / 3


@pytest.fixture(scope="module")
def split(varied_folder):
    cut = Crops("scale", 32, (36, 60))
    return stream.open_stream("varied", "train[6:12]", cut, tuple(MEAN.ravel()), varied_folder)


@pytest.fixture(scope="module")
def net():
    """A network and variables of some contrast, without a trained step."""
    model = ResNet("imagenet", BasicBlock, (1, 1), (4, 8), num_classes=CLASSES)
    state = steps.init_state(model, optim.sgd(lambda _: 0.1), 0, MEAN, (32, 32, 3))
    return model, jax.device_get(state.variables)


def by_hand(net, split, cut_of):
    """Loss and error of the mean probabilities over (cut, (H, W), whether mirrored)."""
    model, variables = net
    apply = jax.jit(functools.partial(model.apply, variables))
    losses, wrong = [], []
    for position in range(split.size):
        (encoded,), (label,) = split.read(np.array([position]))
        found = []
        for cut, shape, mirrored in cut_of(*decoding.read_size(encoded)):
            out = np.empty((1, *shape, 3), np.uint8)
            decoding.cut(encoded, lambda height, width, cut=cut: [cut], out)  # type: ignore[misc]
            image = out[:, :, ::-1] if mirrored else out
            logits = np.asarray(apply(normalize(image, MEAN)), np.float64)[0]
            found.append(np.exp(logits) / np.exp(logits).sum())
        mean = np.mean(found, axis=0)
        losses.append(-np.log(mean[label]))
        wrong.append(mean.argmax() != label)
    return np.mean(losses), np.mean(wrong)


def assert_scores(scores, expected):
    loss, error = expected
    assert scores["images"] == 6
    assert scores["error"] == error
    # 1e-4: float32 logits in batches of another size.
    assert scores["loss"] == pytest.approx(loss, rel=1e-4)


def test_ten_crop_is_the_mean_over_five_crops_and_their_mirror_images(net, split):
    def cuts(height, width):
        found = crops.five_crops(height, width, size=32, shorter=36)
        return [(box, (32, 32), mirrored) for box in found for mirrored in (False, True)]

    devices = Devices("pmap", jax.devices()[:4])
    scores = Views(net[0], devices, net[1], MEAN, print).ten_crop(split, batch_size=50)
    assert_scores(scores, by_hand(net, split, cuts))


def test_multi_scale_is_the_mean_over_whole_images_of_every_side(net, split):
    def cuts(height, width):
        (box,) = crops.whole(height, width)
        return [(box, crops.whole_shape(height, width, side), False) for side in (32, 45)]

    said: list[str] = []
    devices = Devices("shard_map", jax.devices()[:2])
    several = Views(net[0], devices, net[1], MEAN, said.append)
    assert_scores(several.multi_scale(split, 4, (32, 45)), by_hand(net, split, cuts))
    assert [line.partition(":")[0] for line in said if "shorter" in line] == [
        "shorter side 32",
        "shorter side 45",
    ]
