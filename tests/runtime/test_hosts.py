import os
import socket
import sys
import types

import pytest

from resnet_flax.errors import UserError
from resnet_flax.runtime import hosts


@pytest.mark.parametrize(
    "coordinator, num_processes, process_id, message",
    [
        ("127.0.0.1:1", None, None, "Expected all of --coordinator=HOST:PORT"),
        (None, 2, 0, "Expected all of"),
        (None, 2, None, "Expected all of.*or --num_processes=1 alone"),
        ("here", 2, 0, "Expected --coordinator=HOST:PORT, got here"),
        ("here:", 2, 1, "Expected --coordinator=HOST:PORT, got here:"),
        ("here:99999", 2, 0, "Expected --coordinator=HOST:PORT, got here:99999"),
    ],
)
def test_processes_that_cannot_meet_are_told_before_jax_crashes(
    coordinator, num_processes, process_id, message
):
    meeting = hosts.together(coordinator, num_processes, process_id, 30)
    with pytest.raises(UserError, match=message), meeting:
        pass


def test_a_port_in_use_is_refused_by_the_process_that_would_listen():
    with socket.create_server(("", 0)) as server:
        coordinator = f"localhost:{server.getsockname()[1]}"
        refused = pytest.raises(UserError, match="Address already in use.*Choose another")
        with refused, hosts.together(coordinator, 2, 0, 30):
            pass


def test_a_task_that_slurm_says_is_alone_stays_alone(monkeypatch):
    for name, value in [("NTASKS", "1"), ("JOB_ID", "1"), ("PROCID", "0"), ("LOCALID", "0")]:
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("SLURM_STEP_NODELIST", "localhost")
    with hosts.together(None, None, None, 30):
        assert hosts.is_first()
        assert hosts.agree(7) == 7


LAUNCHERS = ("OMPI_", "PMI_", "SLURM_", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "KUBERNETES_")


@pytest.fixture
def no_launcher(monkeypatch):
    """As a process that has used no device, and that nothing began but a shell."""
    monkeypatch.setattr("jax._src.xla_bridge.backends_are_initialized", lambda: False)
    for name in os.environ:
        if name.startswith(LAUNCHERS) or name in ("WORLD_SIZE", "RANK", "JOB_COMPLETION_INDEX"):
            monkeypatch.delenv(name)


# As Open MPI 5, MPICH, an incomplete srun, torchrun, and a user of jax's own variables set them.
@pytest.mark.parametrize(
    "variables",
    [
        {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1", "PMIX_RANK": "1"},
        {"PMI_SIZE": "2", "PMI_RANK": "0"},
        {"SLURM_STEP_NUM_TASKS": "2", "SLURM_NTASKS": "2", "SLURM_PROCID": "0"},
        {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"},
        {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"},
    ],
)
def test_no_process_trains_alone_whose_launcher_says_there_are_two(
    no_launcher, monkeypatch, variables
):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    message = "says that there are 2 processes.*--coordinator.*or give --num_processes=1"
    with pytest.raises(UserError, match=message), hosts.together(None, None, None, 30):
        pass
    with hosts.together(None, 1, None, 30):
        assert hosts.count() == 1


def test_a_launcher_that_began_one_process_or_none_is_no_reason_to_refuse(no_launcher, monkeypatch):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "1")
    with hosts.together(None, None, None, 30):
        assert hosts.count() == 1


def test_a_pod_asks_its_cluster_for_peers_only_where_it_can_have_some(no_launcher, monkeypatch):
    def load():
        raise RuntimeError("Service token file does not exist.\nAnd more.")

    package = types.ModuleType("kubernetes")
    vars(package)["config"] = types.SimpleNamespace(load_incluster_config=load)
    monkeypatch.setitem(sys.modules, "kubernetes", package)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    with hosts.together(None, None, None, 30):
        assert hosts.count() == 1
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "0")
    refused = pytest.raises(UserError, match="Cannot join .*does not exist. Give each process")
    with refused as error, hosts.together(None, None, None, 30):
        pass
    assert "\n" not in str(error.value)
    with hosts.together(None, 1, None, 30):
        assert hosts.count() == 1
