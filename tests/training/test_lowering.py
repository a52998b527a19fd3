"""Steps are lowered from a config and a data set's description, for devices that are not here."""

import contextlib

import jax
import jax.export
import numpy as np
import pytest

from configs import imagenet
from resnet_flax.config import RunConfig, parse
from resnet_flax.data import sources, workers
from resnet_flax.errors import UserError
from resnet_flax.runtime.parallel import Devices
from resnet_flax.training import build, initial_state, lowering


@pytest.fixture
def streamed_config(tiny_config):
    """A tiny network on crops of ImageNet, which is not prepared here."""
    data = imagenet.get_config("resnet18").data.to_dict()
    size = {"batch_size": 16, "image_size": 32, "shorter_side": (36, 60)}
    return {**tiny_config, "data": {**data, **size}}


@pytest.fixture(params=["resident", "streamed"])
def config(request, tiny_config, streamed_config):
    chosen = {"resident": tiny_config, "streamed": streamed_config}[request.param]
    return parse({**chosen, "parallel": "shard_map"}, RunConfig)


def test_steps_for_gpu_and_tpu_have_their_convolutions(config, monkeypatch):
    """Each convolution has two gradients, except that nobody needs that of the images."""
    monkeypatch.setattr(Devices, "platform", "tpu")  # The machine's own are CPUs.
    program = build.describe(config, Devices("shard_map"))
    step, arguments = build.map_training(program), lowering.training_arguments(program)
    params = jax.tree.leaves(initial_state.state_shapes(program).params)
    convolutions = sum(leaf.ndim == 4 for leaf in params)
    for platform in ("cuda", "tpu"):
        exported = jax.export.export(step, platforms=[platform])(*arguments)
        assert exported.nr_devices == 4
        assert exported.mlir_module().count("stablehlo.convolution(") == 3 * convolutions - 1


def test_steps_of_pmap_are_lowered_for_all_devices(tiny_config):
    program = build.describe(parse(tiny_config, RunConfig), Devices("pmap"))
    assert "num_partitions = 4" in lowering.lower_training(program).as_text()


def shapes(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)


@pytest.mark.parametrize("kind", ["resident", "streamed"])
def test_steps_are_lowered_with_the_shapes_that_training_has(
    tiny_config, streamed_config, kind, varied_folder, monkeypatch
):
    def in_this_process(load, then, say):
        return contextlib.nullcontext(then(load(number)) for number in range(len(load)))

    monkeypatch.setattr(workers, "in_background", in_this_process)
    if kind == "streamed":
        here = {"name": "varied", "data_dir": varied_folder, "train_split": "train"}
        tiny_config = streamed_config
        tiny_config["data"] |= {**here, "test_split": "train"}
        tiny_config["data"]["batch_size"] = 8
    else:
        tiny_config["model"] |= {"depth": 14, "scan": "on"}
    built = build.build(parse(tiny_config, RunConfig))
    state = initial_state.initial_state(built, print)
    feed = build.feed(built.train, built.devices, print)
    with feed.training(0, built.config.data.batch_size, range(2), 2) as dispatches:
        real = shapes((built.devices.replicate(state), feed.resident, next(dispatches)))
    assert shapes(lowering.training_arguments(built)) == real
    described = build.describe(built.config, built.devices)
    assert shapes(lowering.training_arguments(described)) == real


def test_a_description_is_enough_and_no_image_is_read(tiny_config, monkeypatch):
    def read(*_):
        raise AssertionError("It read images.")

    monkeypatch.setattr(sources, "_load_split", read)
    config = parse(tiny_config, RunConfig)
    program = build.describe(config, Devices(config.parallel))
    assert program.images == sources.Described((8, 8, 1), 10, 92, resident=True)


def test_a_description_is_checked_as_a_run_is(tiny_config):
    tiny_config["data"]["batch_size"] = 96
    config = parse(tiny_config, RunConfig)
    with pytest.raises(UserError, match=r"at most 92.*got 96"):
        build.describe(config, Devices(config.parallel))


def test_a_mean_has_the_shape_that_its_description_says(tiny_config):
    built = build.build(parse(tiny_config, RunConfig))
    assert built.images.mean_shape == built.train.image_mean().shape
    np.testing.assert_equal(sources.Described((9, 9, 3), 2, None, False).mean_shape, (1, 1, 3))
