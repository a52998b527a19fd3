import json
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def train(count, devices_each, backend):
    """The end of the training in each of `count` processes."""
    port = str(free_port())
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.two_processes"]
            + [str(rank), str(count), str(devices_each), backend, port],
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    outputs = [process.communicate(timeout=180)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * count
    return [json.loads(output.splitlines()[-1]) for output in outputs]


@pytest.mark.parametrize("backend", ["pmap", "shard_map"])
def test_two_processes_of_two_devices_train_as_one_of_four(backend):
    (one,) = train(1, 4, backend)
    two = train(2, 2, backend)
    assert one["devices"] == two[0]["devices"] == 4
    assert two[0] == two[1]
    assert two[0]["scores"]["images"] == 50
    # 2e-5: float32 sums in another order, through three steps at rate 0.1.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), two[0], one)
