"""The claims themselves, on real data: minutes, so `make slow` runs them."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from configs import digits
from resnet_flax import checkpoints, loop
from resnet_flax.records import RunFolder

pytestmark = pytest.mark.slow


def training_error(net, path):
    assert loop.train_and_evaluate(digits.get_config(net).to_dict(), path) == "finished"
    return next(r["error"] for r in RunFolder(path).metrics() if r.get("split") == "train")


def test_depth_degrades_plain_networks_and_not_residual_ones(tmp_path):
    errors = {
        net: training_error(net, tmp_path / net) for net in ("plain20", "plain56", "resnet56")
    }
    # Measured for five seeds each: 0.0 to 0.1, 69 to 89 and 0.4 to 8.3 %; for seed 0 0.0, 69, 0.4.
    assert errors["plain20"] < 0.02
    assert errors["plain56"] > 0.3
    assert errors["resnet56"] < 0.05


@pytest.mark.skipif(
    not Path(os.environ.get("TFDS_DATA_DIR", ""), "cifar10").is_dir(),
    reason="TFDS_DATA_DIR has no cifar10",
)
def test_cifar10_killed_in_the_middle_ends_in_the_same_bits(tmp_path):
    def command(workdir):
        flags = ["--config=configs/cifar10.py:resnet20", f"--workdir={tmp_path / workdir}"]
        flags += ["--config.steps=40", "--config.log_every=10", "--config.checkpoint_every=10"]
        return [sys.executable, "-m", "experiments.train", *flags]

    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "2"}
    subprocess.run(command("whole"), env=environment, check=True)
    process = subprocess.Popen(
        command("killed"), env=environment, stdout=subprocess.PIPE, text=True
    )
    for line in process.stdout:
        if "step 30/40" in line:
            process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL
    subprocess.run(command("killed"), env=environment, check=True)

    states = []
    for workdir in ("whole", "killed"):
        with checkpoints.Checkpoints(RunFolder(tmp_path / workdir).checkpoints) as saved:
            states.append(saved.restore(40))
    jax.tree.map(np.testing.assert_array_equal, *states)
