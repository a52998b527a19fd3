"""Barriers are kept for a CPU. A GPU's compiler would refuse them."""

import os
from importlib import metadata

import pytest

from resnet_flax.runtime import cpu


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine with a plug-in of jax if asked for, and with these devices in /dev."""

    def made(platforms="", plugin=True, devices=(), flags=""):
        monkeypatch.setenv("XLA_FLAGS", flags)
        monkeypatch.setenv("JAX_PLATFORMS", platforms)
        entries = ("xla_cuda13",) if plugin else ()
        monkeypatch.setattr(metadata, "entry_points", lambda group: entries)
        monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
        for device in devices:
            (tmp_path / device).parent.mkdir(exist_ok=True)
            (tmp_path / device).touch()
        monkeypatch.setattr(cpu, "_DEV", tmp_path)
        cpu.keep_barriers()
        return "cse_barrier_expander" in os.environ["XLA_FLAGS"]

    return made


@pytest.mark.parametrize("device", ["nvidia0", "dxg", "kfd", "accel0", "vfio/0"])
def test_a_process_with_an_accelerator_keeps_no_barriers(machine, device):
    assert not machine(devices=[device])


@pytest.mark.parametrize("platforms", ["cuda", "tpu,cpu"])
def test_a_process_that_is_told_to_use_an_accelerator_keeps_no_barriers(machine, platforms):
    assert not machine(platforms)


@pytest.mark.parametrize(
    "facts",
    [
        {"platforms": "cpu", "devices": ["nvidia0"]},
        {"plugin": False, "devices": ["nvidia0"]},
        {"devices": ["nvidiactl", "vfio/vfio"]},
    ],
)
def test_a_process_on_the_cpu_keeps_them(machine, facts):
    assert machine(**facts)


def test_a_flag_that_a_machine_without_devices_gave_is_dropped_and_others_stay(machine):
    assert machine(flags="--xla_a=1")
    given = os.environ["XLA_FLAGS"]
    assert not machine(devices=["nvidia0"], flags=given)
    assert os.environ["XLA_FLAGS"] == "--xla_a=1"
    assert machine(devices=["nvidia0"], flags="--xla_disable_hlo_passes=cse_barrier_expander,dce")
