"""The real compilers, for devices that are not here. `make compilers` installs them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

PYTHON = Path(".venv-compile/bin/python")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON.exists(), reason="`make compilers` installs the compilers"),
]
SMALL = ("configs/digits.py:resnet8", "--config.data.pad=1", "--config.data.flip=True")


def compiled(folder, topology, config, *flags):
    """What the command prints, its exit status and the row that it writes."""
    command = [sys.executable, "-m", "experiments.compile", f"--config={config}", *flags]
    command += [f"--topology={topology}", f"--output={folder}/rows.json"]
    done = subprocess.run(command, capture_output=True, text=True)
    rows = json.loads((folder / "rows.json").read_text()) if done.returncode < 2 else [done.stderr]
    return done.stdout, done.returncode, rows[-1]


@pytest.mark.parametrize("backend", ["pmap", "shard_map"])
def test_a_step_for_two_hosts_of_tpus_sums_over_all_their_chips(tmp_path, backend):
    flags = ("--config.data.batch_size=64", f"--config.parallel={backend}", f"--hlo_dir={tmp_path}")
    said, status, row = compiled(tmp_path, "v5e:2x4", *SMALL, *flags)
    assert status == 0, row
    assert row["chips"] == 8
    assert row["collectives"]["all-reduce"]["count"] == 1
    (hlo,) = tmp_path.glob("*.hlo.txt")
    assert "replica_groups={{0,1,2,3,4,5,6,7}}" in hlo.read_text()
    assert "not measured" in said


def test_a_network_that_does_not_fit_is_refused_in_xlas_words(tmp_path):
    data = {"name": "imagenet2012", "crop": "scale", "image_size": 32, "pad": 0}  # Not prepared.
    flags = [f"--config.data.{name}={value}" for name, value in data.items()]
    flags += ["--config.data.shorter_side=(36,60)", "--config.data.batch_size=256"]
    said, status, row = compiled(tmp_path, "v5e:1x1", "configs/cifar10.py:resnet1202", *flags)
    assert status == 1, row
    assert "Ran out of memory" in said
    assert not row["fits"]


def test_a_gpu_takes_a_network_that_is_rematerialised(tmp_path):
    _, status, row = compiled(tmp_path, "h100:1", *SMALL, "--config.model.remat=True")
    assert status == 0, row
    assert row["serial_loops"] == []
