import dataclasses

import jax
import numpy as np
import pytest
from flax import linen as nn

from resnet_flax.config import ModelConfig, RunConfig, parse
from resnet_flax.models import stacking
from resnet_flax.runs import load_run
from resnet_flax.storage import checkpoints
from resnet_flax.storage.run_folder import RunFolder
from resnet_flax.training import architecture, initial_state
from resnet_flax.training.recorder import Recorder
from tests.given import built, is_stacked, train


@pytest.fixture
def two_blocks(tiny_config):
    """A depth whose stages have blocks to stack."""
    tiny_config["model"]["depth"] = 14
    tiny_config["model"]["widths"] = (4, 4, 4)
    return tiny_config


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """A function: the folder of a finished run of a config; it is trained once."""
    folder = tmp_path_factory.mktemp("whole") / "run"

    def run(config):
        if not folder.exists():
            assert train(config, folder) == "finished"
        return folder

    return run


def scanned(config, scan="on"):
    return config | {"model": config["model"] | {"scan": scan}}


def initial(config):
    return initial_state.initial_state(built(config), print)


def test_a_seed_gives_the_same_parameters_scanned_or_not(two_blocks):
    stacked, unrolled = initial(scanned(two_blocks)), initial(scanned(two_blocks, "off"))
    assert is_stacked(stacked.params)
    assert not is_stacked(unrolled.params)
    jax.tree.map(np.testing.assert_array_equal, stacking.unstack(stacked), unrolled)
    kernels = [unrolled.params[f"stage1_block{i}"]["conv2"]["kernel"] for i in (1, 2)]
    assert not np.array_equal(*kernels)


def test_variables_before_training_need_no_test_images_and_no_twin(two_blocks, monkeypatch):
    two_blocks["optim"]["norms_of"] = "none"
    expected = initial(two_blocks).variables
    two_blocks["data"]["test_split"] = "nowhere"
    monkeypatch.setattr(initial_state, "norm_factors", None)
    config = parse(two_blocks, RunConfig)
    jax.tree.map(
        np.testing.assert_array_equal, initial_state.initial_variables(config, print), expected
    )


def test_a_seed_gives_the_parameters_that_it_always_gave(two_blocks):
    # If this fails, results of older versions cannot be had again.
    kernel = initial(two_blocks).params["stage2_block1"]["conv1"]["kernel"]
    # 1e-5: the normal distribution's inverse, in float32.
    np.testing.assert_allclose(kernel[0, 0, :2, 0], [-0.0030307816, -0.09194325], rtol=1e-5)


@pytest.mark.parametrize("scan", ["on", "off"])
def test_the_shapes_are_those_of_a_saved_state(two_blocks, scan):
    config = scanned(two_blocks, scan)
    shapes = initial_state.state_shapes(built(config))
    state = stacking.unstack(initial(config))
    assert jax.tree.map(np.shape, shapes) == jax.tree.map(np.shape, state)


class Family(nn.Module):
    """A network of a user's own, which has no blocks."""

    @nn.compact
    def __call__(self, images, train=False):
        return nn.Dense(3, name="fc")(images.reshape(len(images), -1))


def test_a_network_of_another_family_has_a_state(two_blocks):
    program = dataclasses.replace(built(two_blocks), model=Family())
    assert initial_state.state_shapes(program).params["fc"]["bias"].shape == (3,)


def test_a_scanned_run_is_saved_by_block_and_resumed_bit_for_bit(
    two_blocks, whole_run, tmp_path, monkeypatch
):
    config = scanned(two_blocks)
    undisturbed = whole_run(config)

    class PulledPlug(BaseException):
        pass

    def unplugged(self, step, values):
        if step == 20:
            raise PulledPlug
        original(self, step, values)

    original = Recorder.add_training
    monkeypatch.setattr(Recorder, "add_training", unplugged)
    with pytest.raises(PulledPlug):
        train(config, tmp_path / "cut")
    monkeypatch.undo()
    assert train(config, tmp_path / "cut") == "finished"
    whole, cut = (
        checkpoints.Checkpoints(RunFolder(path).checkpoints).restore()
        for path in (undisturbed, tmp_path / "cut")
    )
    assert {"stage1_block1", "stage1_block2"} <= whole["params"].keys()
    assert not is_stacked(whole)
    jax.tree.map(np.testing.assert_array_equal, whole, cut)


def test_a_checkpoint_serves_scanned_and_unrolled_networks_alike(
    two_blocks, whole_run, capsys, monkeypatch
):
    stacked = whole_run(scanned(two_blocks))
    unrolled = scanned(two_blocks, "off") | {"init_from": str(stacked)}
    state = initial(unrolled)
    assert "left over: nothing" in capsys.readouterr().out
    run = load_run(stacked)
    jax.tree.map(np.testing.assert_array_equal, run.variables["params"], state.params)
    monkeypatch.setattr(architecture, "DEEPEST_UNROLLED", 8)
    deep = load_run(stacked)
    assert is_stacked(deep.variables)
    parts = built(unrolled)
    images = parts.test.images
    logits = parts.model.apply(state.variables, run.normalize(images))
    # 1e-5: probabilities; float32 sums in another order.
    for loaded in (run, deep):
        np.testing.assert_allclose(jax.nn.softmax(logits), loaded.predict(images), atol=1e-5)


def test_deep_networks_are_scanned_by_themselves():
    from configs import cifar10

    for net, scan in (("resnet110", False), ("resnet1202", True)):
        model = cifar10.get_config(net).model.to_dict()
        config = parse(model, ModelConfig)
        assert architecture.build_model(config, 10).scan == scan
