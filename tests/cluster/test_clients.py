"""What the schedulers' own programs say of the job files, where no cluster is needed for that."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PYTHON = Path(".venv-schedulers/bin/python")
CONFIG = ["--config=configs/degradation.py:digits", "--config.seeds=(0,)", "--config.depths=(8,)"]
GPUS = ["--accelerator=nvidia-h100-80gb", "--devices_per_run=8", "--image=images/resnet:1"]
CHIPS = [
    "--accelerator=tpu-v5-lite-podslice", "--topology=4x4", "--devices_per_run=16",
    "--nodes_per_run=4", "--image=images/resnet:1", "--queue=research", "--spot",
]  # fmt: skip
# Nobody's account, and where nobody answers, whatever this machine is otherwise allowed.
NOBODY = {
    "CLOUDSDK_CORE_ACCOUNT": "nobody@example.invalid",
    "CLOUDSDK_CORE_CHECK_GCE_METADATA": "false",
    "CLOUDSDK_CORE_PROJECT": "none",
    "CLOUDSDK_API_ENDPOINT_OVERRIDES_TPU": "http://127.0.0.1:9/",
}
pytestmark = pytest.mark.cluster
needs_readers = pytest.mark.skipif(
    not PYTHON.exists(), reason=f"no {PYTHON}: `make cluster-test` makes it"
)
needs_gcloud = pytest.mark.skipif(not shutil.which("gcloud"), reason="gcloud is not installed")


def launch(target, workdir, *flags, **environment):
    command = [sys.executable, "-m", "experiments.launch", f"--target={target}", *CONFIG, *flags]
    return subprocess.run(
        [*command, f"--workdir={workdir}"],
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )


def written(*args):
    done = launch(*args)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[:-1]


def read(target, paths, home):
    """What the scheduler's own code makes of the files."""
    command = [PYTHON, "tests/cluster/read_jobs.py", target, *paths]
    done = subprocess.run(
        command, env=os.environ | {"HOME": str(home)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@needs_readers
@pytest.mark.parametrize("flags", [GPUS, CHIPS])
def test_every_field_of_a_jobset_is_one_of_its_and_of_a_jobs_schema(flags, tmp_path):
    paths = written("gke", tmp_path / "sweep", *flags)
    assert read("gke", paths, tmp_path) == [None, None]


@needs_readers
def test_skypilot_reads_a_task_that_recovers_on_75_alone_on_nodes_that_share_its_devices(tmp_path):
    flags = ["--accelerator=H100", "--devices_per_run=16", "--nodes_per_run=2", "--spot"]
    plain, _ = read("skypilot", written("skypilot", tmp_path / "sweep", *flags), tmp_path)
    assert (plain["name"], plain["nodes"], plain["spot"]) == ("sweep-plain-8-s0", 2, True)
    assert plain["accelerators"] == {"H100": 8}
    assert plain["recovery"]["recover_on_exit_codes"] == [75]
    assert plain["recovery"]["max_restarts_on_errors"] == 0


@needs_readers
def test_skypilot_knows_a_tpu_by_its_name(tmp_path):
    paths = written("skypilot", tmp_path / "sweep", "--accelerator=tpu-v5litepod-16")
    assert read("skypilot", paths, tmp_path)[0]["accelerators"] == {"tpu-v5litepod-16": 1}


def gcloud_commands(script):
    """Those of a script, as its shell would give them."""
    text = re.sub(r"\\\n\s*", "", Path(script).read_text())
    text = text.replace('"$name', '"sweep').replace('"$archive"', "code").replace('"$2"', "ls")
    found = re.findall(r"gcloud (compute .*?)(?: ;;)?$", text, re.MULTILINE)
    return [shlex.split(command) for command in found]


@needs_gcloud
def test_gcloud_lacks_but_an_account_to_obey_each_command_of_a_tpu_script(tmp_path):
    flags = ["--accelerator=v5litepod-16", "--zone=us-central1-a", "--spot"]
    (script,) = written("tpu-vm", tmp_path / "sweep", *flags)
    commands = gcloud_commands(script)
    assert len(commands) == 5
    environment = os.environ | NOBODY | {"CLOUDSDK_CONFIG": str(tmp_path / "gcloud")}
    environment["CLOUDSDK_COMPUTE_ZONE"] = "us-central1-a"
    for command in commands:
        done = subprocess.run(["gcloud", *command], env=environment, capture_output=True, text=True)
        # A flag that it does not know, or misses, is 2.
        assert (done.returncode, "nobody@example.invalid" in done.stderr) == (1, True), done.stderr


@needs_gcloud
def test_gcloud_without_an_account_is_one_line_and_status_1(tmp_path):
    flags = ["--accelerator=v5litepod-16", "--zone=us-central1-a", "--submit"]
    environment = NOBODY | {"CLOUDSDK_CONFIG": str(tmp_path / "gcloud")}
    done = launch("tpu-vm", tmp_path / "sweep", *flags, **environment)
    assert done.returncode == 1
    note, line = done.stderr.splitlines()
    assert "ends with the machines" in note
    assert line.startswith("sweep: ERROR: (gcloud.compute.tpus.queued-resources.create)")
