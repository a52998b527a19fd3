import jax
import jax.numpy as jnp
import numpy as np
import pytest

from resnet_flax import optim, steps
from resnet_flax.checkpoints import Checkpoints
from resnet_flax.errors import UserError
from resnet_flax.models.resnet import build_resnet
from resnet_flax.parallel import Devices


@pytest.fixture(scope="module")
def state():
    model = build_resnet("cifar", 8, "pad", (4, 8, 8), num_classes=10)
    mean = np.ones((8, 8, 1), np.float32)
    return steps.init_state(model, optim.sgd(lambda _: 0.1), np.uint32(2**32 - 1), mean)


def test_a_state_is_restored_bit_for_bit_in_another_process_of_the_library(tmp_path, state):
    on_devices = Devices().replicate(state)
    with Checkpoints(tmp_path / "checkpoints", writable=True) as checkpoints:
        checkpoints.save(3, on_devices)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        restored = checkpoints.restore_into(jax.eval_shape(lambda: state))
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, restored, jax.device_get(state))
    dtypes = [jax.tree.map(lambda leaf: leaf.dtype, tree) for tree in (restored, state)]
    assert dtypes[0] == dtypes[1]


def test_a_state_may_be_donated_as_soon_as_save_returns(tmp_path):
    devices = Devices()
    add = devices.map(lambda s, x: s + 1, (False, True), donate=0)
    state = devices.replicate(np.zeros(1 << 20, np.float32))
    with Checkpoints(tmp_path, writable=True) as checkpoints:
        for step in (1, 2):
            state = add(state, devices.shard(np.zeros(4)))
            checkpoints.save(step, {"value": state})
            state = add(state, devices.shard(np.zeros(4)))
        first, second = (checkpoints.restore(step)["value"] for step in (1, 2))
    np.testing.assert_array_equal(first, 1)
    np.testing.assert_array_equal(second, 3)


def test_the_last_two_are_kept_and_a_wrong_step_is_answered_with_those_there_are(tmp_path):
    with Checkpoints(tmp_path, writable=True) as checkpoints:
        for step in (1, 5, 9):
            checkpoints.save(step, {"value": jnp.float32(step)})
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [5, 9]
        assert checkpoints.restore(5)["value"] == 5
        assert checkpoints.restore()["value"] == 9
        with pytest.raises(UserError, match=r"No checkpoint of step 1 .*there are: \[5, 9\]"):
            checkpoints.restore(1)


def test_an_empty_folder_is_answered_in_words(tmp_path):
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(UserError, match="No checkpoint in"):
        checkpoints.restore()


def test_what_a_crash_left_of_a_save_is_not_taken_for_a_checkpoint(tmp_path):
    with Checkpoints(tmp_path, writable=True) as checkpoints:
        checkpoints.save(1, {"value": jnp.float32(1)})
    (tmp_path / "2.orbax-checkpoint-tmp").mkdir()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [1]


def test_a_reader_leaves_the_writers_unfinished_save_alone(tmp_path):
    with Checkpoints(tmp_path, writable=True) as writer:
        writer.save(1, {"value": jnp.zeros(1 << 22)})
        writer._checkpointer.wait()
        writer.save(2, {"value": jnp.ones(1 << 22)})
        for _ in range(5):
            with Checkpoints(tmp_path) as reader:
                reader.restore(1)
    with Checkpoints(tmp_path) as reader:
        assert reader.restore(2)["value"].sum() == 1 << 22


def test_a_reader_makes_no_folder(tmp_path):
    with pytest.raises(UserError, match="No checkpoint in"):
        Checkpoints(tmp_path / "checkpoints")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "other", [{"a": jnp.zeros(3)}, {"a": jnp.zeros(2, int)}, {"b": jnp.zeros(2)}, {}]
)
def test_another_models_checkpoint_is_refused_naming_a_leaf(tmp_path, other):
    with Checkpoints(tmp_path, writable=True) as checkpoints:
        checkpoints.save(1, {"a": jnp.zeros(2), "c": jnp.zeros(2)})
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.restore_into({"a": jnp.ones(2), "c": jnp.ones(2)})
        with pytest.raises(UserError, match="of another model: expected [abc] to be"):
            checkpoints.restore_into({**other, "c": jnp.ones(2)})


def test_a_truncated_checkpoint_is_one_line_with_the_way_out(tmp_path):
    with Checkpoints(tmp_path, writable=True) as checkpoints:
        checkpoints.save(1, {"value": jnp.arange(1000.0)})
    for file in (tmp_path / "1").rglob("*"):
        if file.is_file() and "/d/" in str(file):
            file.write_bytes(file.read_bytes()[:-10])
    damaged = pytest.raises(UserError, match="damaged .* Move it away")
    with Checkpoints(tmp_path) as checkpoints, damaged as error:
        checkpoints.restore()
    assert "\n" not in str(error.value)
