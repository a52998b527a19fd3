import json

import numpy as np
import pytest

from resnet_flax.storage.tensorboard import EventFile
from tests import events


def write(folder, method, *args):
    file = EventFile(folder / "tensorboard", attempt=1, step=0)
    getattr(file, method)(*args)
    file.close()
    return events.read_values(folder / "tensorboard")


def test_each_kernel_has_a_histogram_that_counts_every_finite_weight(tmp_path):
    kernel = np.random.default_rng(0).normal(size=(3, 3, 4, 8)).astype(np.float32)
    broken = kernel.copy()
    broken[0, 0] = np.nan
    params = {
        "conv": {"kernel": kernel},
        "bn": {"scale": np.ones(8, np.float32), "bias": np.zeros(8, np.float32)},
        "stage1_block1": {"conv1": {"kernel": broken}},
        "fc": {"kernel": np.full((8, 2), np.inf, np.float32), "bias": np.zeros(2, np.float32)},
    }
    values = write(tmp_path, "add_weights", 7, params)
    assert values.keys() == {(7, "weights/conv"), (7, "weights/stage1_block1/conv1")}
    whole, rest = (values[key].histo for key in sorted(values))
    assert sum(whole.bucket) == whole.num == kernel.size
    assert sum(rest.bucket) == rest.num == kernel.size - 32
    assert (whole.min, whole.max) == (kernel.min(), kernel.max())
    np.testing.assert_allclose(whole.sum_squares, np.square(kernel).sum(), rtol=1e-5)  # float32
    below = np.cumsum(whole.bucket)
    expected = [(kernel <= limit + 1e-6).sum() for limit in whole.bucket_limit]
    np.testing.assert_array_equal(below, expected)


def test_the_config_is_shown_as_text(tmp_path):
    config = {"seed": 0, "model": {"depth": 8}}
    (value,) = write(tmp_path, "add_config", 0, config).values()
    assert value.metadata.plugin_data.plugin_name == "text"
    text = value.tensor.string_val[0].decode()
    assert json.loads(text.strip("`")) == config


@pytest.mark.parametrize(
    "values", [[1e10], [-3e38, 3e38], [1, np.nextafter(np.float32(1), np.float32(2))], [1e38, 1e38]]
)
def test_extreme_weights_have_a_histogram_too(tmp_path, values):
    params = {"fc": {"kernel": np.array(values, np.float32)}}
    ((key, value),) = write(tmp_path, "add_weights", 7, params).items()
    assert key == (7, "weights/fc") and sum(value.histo.bucket) == len(values)
