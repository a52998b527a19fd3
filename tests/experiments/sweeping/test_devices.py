import pytest

from experiments.sweeping import devices
from resnet_flax.config import RunConfig, parse
from resnet_flax.runtime import cpu


@pytest.mark.parametrize(
    "file, platforms, is_told",
    [("nvidia3", "", True), ("nvidia3", "cpu", False), ("null", "", False)],
)
def test_a_gpu_that_jax_leaves_unused_is_told(
    tiny_config, tmp_path, monkeypatch, capsys, file, platforms, is_told
):
    (tmp_path / file).touch()
    monkeypatch.setattr(cpu, "_DEV", tmp_path)
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    monkeypatch.setenv(cpu.DEVICES, "2")  # So that it leaves the number of devices alone.
    devices.begin(parse(tiny_config, RunConfig))
    told = f"This machine has {tmp_path / file}, but jax found" in capsys.readouterr().err
    assert told == is_told


def test_a_share_of_a_gpu_takes_the_place_of_the_users_under_either_name():
    for name in ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"):
        found = devices.of_shared_gpu({name: "0.5", "HOME": "x"}, 3)
        assert found == {"XLA_CLIENT_MEM_FRACTION": "0.300", "HOME": "x"}
