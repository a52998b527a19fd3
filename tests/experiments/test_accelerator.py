"""The first minutes on an accelerator, rehearsed on this machine's CPU with tiny networks."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from experiments.benchmarks import sharing
from experiments.soak import mismatches
from resnet_flax.storage.run_folder import RunFolder
from tests.end_to_end.processes import SECONDS, SWEEP

RUNS = ("plain-8-s0", "residual-8-s0")


def rates(*numbers):
    return [
        {"runs_at_once": count, "dispatches_per_s": rate}
        for count, rate in zip((1, 2, 4), numbers, strict=True)
    ]


@pytest.mark.parametrize(
    "measured, chosen",
    [
        (rates(10, 19, 30), 4),
        (rates(10, 19, 20), 2),
        (rates(10, 10.5, 10.9), 1),
        (rates(9, 5, 10), 4),
    ],
)
def test_runs_share_a_device_only_if_that_pays(measured, chosen):
    assert sharing.best(measured) == chosen


def start(workdir, *flags):
    """The command, in a group of processes of its own."""
    command = [sys.executable, "-m", "experiments.accelerator", *SWEEP[1:], *flags]
    command += [f"--workdir={workdir}", "--torch_python=none"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    )


@pytest.mark.slow
def test_it_goes_on_elsewhere_from_the_folder_of_a_machine_that_vanished(tmp_path):
    steps = ("--config.run.steps=6000", "--config.run.optim.boundaries=(3000,)", "--at_once=2")
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    process = start(here, *steps, "--minutes=20")
    run = RunFolder(here / RUNS[0])
    end = time.monotonic() + SECONDS
    while time.monotonic() < end and process.poll() is None:
        if run.path.exists() and any(record["step"] >= 40 for record in run.metrics()):
            break
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert run.status().state == "running"
    (known,) = json.loads((here / "first_minutes.json").read_text()).values()
    assert known["check"]["agrees"] and known["check"]["resumes_in_the_same_bits"]
    assert known["check"]["was_killed"]

    here.rename(elsewhere)
    process = start(elsewhere, *steps, "--minutes=20")
    said, _ = process.communicate(timeout=2 * SECONDS)
    assert process.returncode == 0, said
    assert (elsewhere / "report.html").exists()
    whole = subprocess.run(
        [sys.executable, "-m", "experiments.sweep", *SWEEP[1:], *steps[:2]]
        + [f"--workdir={tmp_path}/whole", f"--only={RUNS[0]}"],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
    )
    assert whole.returncode == 0
    assert mismatches(elsewhere / RUNS[0], tmp_path / "whole" / RUNS[0]) == []


@pytest.mark.slow
def test_it_saves_and_says_try_again_when_its_minutes_are_over(tmp_path):
    process = start(tmp_path, "--config.run.steps=1000000", "--minutes=1.5")
    said, _ = process.communicate(timeout=SECONDS)
    assert process.returncode in (75, 1), said  # 1: the check did not end in 30 s.
    status = RunFolder(tmp_path / RUNS[0]).status()
    assert status is None or (status.state == "preempted" and status.step > 0)
