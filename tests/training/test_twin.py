"""Gradient norms of a twin: the factors, where they are kept, and what they do to training."""

import jax
import numpy as np
import pytest

from resnet_flax.config import RunConfig, parse
from resnet_flax.errors import UserError
from resnet_flax.models import stacking
from resnet_flax.storage.checkpoints import Checkpoints
from resnet_flax.storage.run_folder import RunFolder
from resnet_flax.training import architecture, build, initial_state, metrics, twin
from tests.given import built, train


@pytest.fixture
def of_residual(tiny_config):
    """A plain network with the gradient norms of the residual one; one stage has a stack."""
    tiny_config["model"] |= {"depth": 14, "widths": (4, 4, 4), "shortcut": "none", "scan": "on"}
    tiny_config["optim"]["norms_of"] = "pad"
    return tiny_config


def factors_of(state):
    return stacking.unstack(state).opt_state[0].factors


def gradient_norms(config, variables, batches):
    """Means over batches, of the whole network's loss, by `jax.grad` on one device."""
    model = architecture.build_model(parse(config, RunConfig).model, 10).clone(
        scan=False, remat=False
    )

    def loss(params, batch):
        logits, _ = model.apply(
            {**variables, "params": params}, batch.image, train=True, mutable=["batch_stats"]
        )
        return metrics.cross_entropy(logits, batch.label).mean()

    gradient = jax.jit(jax.grad(loss))
    found = [gradient(variables["params"], batch) for batch in batches]
    return jax.tree.map(
        lambda *leaves: np.mean([np.linalg.norm(x.ravel()) for x in leaves]), *found
    )


def test_scaled_gradients_have_the_norms_of_the_twin(of_residual, monkeypatch):
    monkeypatch.setattr(twin, "BATCHES", 2)
    experiment = built(of_residual)
    state = stacking.unstack(initial_state.initial_state(experiment, print))
    config = experiment.config
    mean = experiment.train.image_mean()
    batches = build.training_batches(config.data, config.parallel, mean, 2)
    own = gradient_norms(of_residual, state.variables, batches)
    of_residual["model"]["shortcut"] = "pad"
    theirs = gradient_norms(of_residual, state.variables, batches)
    scaled = jax.tree.map(lambda norm, factor: norm * factor.item(), own, factors_of(state))
    # 1e-3: float32, summed in another order over 14 layers.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3), scaled, theirs)
    assert min(jax.tree.leaves(factors_of(state))) < 0.8


def test_a_resumed_run_has_the_factors_of_its_checkpoint(of_residual, tmp_path):
    of_residual["steps"] = of_residual["checkpoint_every"]
    folder = RunFolder(tmp_path / "run")
    train(of_residual, folder.path)
    saved = Checkpoints(folder.checkpoints, config=folder.config_digest(), say=print)
    experiment = built(of_residual)
    expected = factors_of(initial_state.initial_state(experiment, print))
    restored = saved.restore_into(initial_state.state_shapes(experiment), saved.last_good())
    jax.tree.map(np.testing.assert_array_equal, factors_of(restored), expected)
    assert any(leaf.item() != 1 for leaf in jax.tree.leaves(expected))


@pytest.mark.parametrize(
    ("shortcut", "norms_of"), [("none", "none"), ("projection", "none"), ("pad", "pad")]
)
def test_a_twin_has_the_other_shortcut_and_the_same_parameters(tiny_config, shortcut, norms_of):
    tiny_config["model"]["shortcut"] = shortcut
    tiny_config["optim"]["norms_of"] = norms_of
    with pytest.raises(UserError, match=f"got model.shortcut='{shortcut}' and '{norms_of}'"):
        built(tiny_config)


def test_a_twin_that_cannot_be_is_named(of_residual):
    of_residual["model"]["widths"] = (8, 8, 4)
    with pytest.raises(UserError, match="network of optim.norms_of='pad': .*do not shrink"):
        built(of_residual)


def test_a_gradient_of_zero_has_no_factor(of_residual):
    of_residual["model"] |= {"shortcut": "pad", "zero_init_residual": True}
    of_residual["optim"]["norms_of"] = "none"
    with pytest.raises(UserError, match="zero_init_residual=False with optim.norms_of='none'"):
        built(of_residual)


@pytest.mark.parametrize("optimizer", ["adam", "lars"])
def test_an_optimiser_that_divides_by_the_norm_takes_no_factors(of_residual, optimizer):
    of_residual["optim"]["optimizer"] = optimizer
    with pytest.raises(UserError, match='optimizer="sgd" with norms_of="pad", got "'):
        built(of_residual)


def test_a_network_that_begins_linear_may_have_the_norms_of_a_twin(of_residual):
    of_residual["model"] |= {"init": "looks_linear"}
    state = initial_state.initial_state(built(of_residual), print)
    assert any(leaf.item() != 1 for leaf in jax.tree.leaves(factors_of(state)))
