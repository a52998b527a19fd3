import socket

import pytest

from resnet_flax import hosts
from resnet_flax.errors import UserError


@pytest.mark.parametrize(
    "coordinator, num_processes, process_id, message",
    [
        ("127.0.0.1:1", None, None, "Expected all of --coordinator=HOST:PORT"),
        (None, 2, 0, "Expected all of"),
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
