import shutil

import jax
import numpy as np
import pytest

from resnet_flax import loop, runs
from resnet_flax.data import sources
from resnet_flax.errors import UserError
from resnet_flax.records import RunFolder


@pytest.fixture
def finished_run(tiny_config, tmp_path):
    loop.train_and_evaluate(tiny_config, tmp_path / "run")
    return tmp_path / "run"


def test_a_run_moved_elsewhere_predicts_as_it_was_evaluated(finished_run, tmp_path, monkeypatch):
    moved = tmp_path / "moved" / "run"
    shutil.move(finished_run, moved)
    test = sources.load_split("digits", "test[:37]")
    run = runs.load_run(moved)
    probabilities = run.predict(test.images)
    assert probabilities.shape == (37, 10)
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)  # float32
    scored = [r for r in RunFolder(moved).metrics() if r.get("split") == "test"][-1]
    assert np.mean(probabilities.argmax(1) != test.labels) == scored["error"]
    picked = probabilities[np.arange(37), test.labels]
    assert -np.log(picked).mean() == pytest.approx(scored["loss"], rel=1e-5)
    assert run.step == 24
    assert run.config.model.depth == 8


def test_an_earlier_step_is_restored_when_asked_for(finished_run):
    earlier, last = runs.load_run(finished_run, 16), runs.load_run(finished_run)
    assert earlier.step == 16
    same = jax.tree.map(np.array_equal, earlier.variables, last.variables)
    assert not any(jax.tree.leaves(same))
    with pytest.raises(UserError, match=r"there are: \[16, 24\]"):
        runs.load_run(finished_run, 17)


def test_images_of_another_type_or_shape_are_refused_in_words(finished_run):
    run = runs.load_run(finished_run)
    with pytest.raises(ValueError, match=r"uint8 images \[B, 8, 8, 1\], got float32"):
        run.predict(np.zeros((2, 8, 8, 1), np.float32))
    with pytest.raises(ValueError, match=r"got uint8 \[8, 8, 1\]"):
        run.predict(np.zeros((8, 8, 1), np.uint8))


def test_the_model_takes_normalised_images(finished_run):
    test = sources.load_split("digits", "test[:37]")
    run = runs.load_run(finished_run)
    logits = run.model.apply(run.variables, run.normalize(test.images))
    np.testing.assert_array_equal(logits.argmax(1), run.predict(test.images).argmax(1))


def test_a_folder_that_is_no_runs_is_left_as_it_was(tmp_path):
    with pytest.raises(UserError, match="is .* a run's folder"):
        runs.load_run(tmp_path)
    assert not list(tmp_path.iterdir())
