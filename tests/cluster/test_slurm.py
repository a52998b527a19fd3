"""Sweeps that `launch` gives to a real Slurm, and what may befall them there."""

import shutil
import subprocess
import sys

import pytest

from resnet_flax.storage.run_folder import RunFolder
from tests.cluster import slurm
from tests.cluster.slurm import NODES, wait_for
from tests.end_to_end.processes import assert_same_bits, start

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(bool(slurm.missing()), reason=f"not installed: {slurm.missing()}"),
]
CONFIG = (
    "--config=configs/degradation.py:digits", "--config.seeds=(0,)",
    "--config.run.steps_per_dispatch=20", "--config.run.log_every=100",
    "--config.run.checkpoint_every=100", "--config.run.model.widths=(4, 8, 8)",
    "--config.run.model.bn_scope=global", "--config.run.data.batch_size=16",
    "--config.run.data.train_split=train[:92]", "--config.run.data.test_split=test[:37]",
    "--config.run.optim.boundaries=(300,)",
)  # fmt: skip
SHORT = (*CONFIG, "--config.run.steps=600", "--config.run.eval_every=300")
LONG = (
    *CONFIG,
    "--config.depths=(8,)",
    "--config.run.steps=1000000",
    "--config.run.eval_every=1000000",
)
FOUR_RUNS = "--config.depths=(8, 14)"
TOGETHER = ("--devices_per_run=2", "--nodes_per_run=2")
FIRST_ALONE = "--option=--array=0"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    cluster = slurm.Cluster(tmp_path_factory.mktemp("slurm"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def launch(cluster, workdir, *flags):
    command = [sys.executable, "-m", "experiments.launch", "--target=slurm", *flags]
    command += [f"--workdir={workdir}", "--submit"]
    return subprocess.run(command, env=cluster.environment, capture_output=True, text=True)


def submit(cluster, workdir, *flags):
    """The number of the array."""
    done = launch(cluster, workdir, *flags)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split("Submitted batch job ")[1])


def folder(workdir, kind, depth=8):
    return RunFolder(workdir / f"{kind}-{depth}-s0")


def steps_saved(run):
    return [int(path.name) for path in run.checkpoints.glob("*") if path.name.isdecimal()]


def finish(cluster, array):
    """Until Slurm has no element left to run; those it requeued it places after two minutes.

    It waits for what it still asks of the node they ran on; placed at once, an element that gets a
    node that is just back never begins.
    """
    wait_for(lambda: all(element.state in slurm.ENDED for element in cluster.elements(array)))
    return cluster.elements(array)


def test_a_killed_node_costs_a_sweep_no_bit(cluster, tmp_path):
    whole, workdir = tmp_path / "whole", tmp_path / "the user's 100%j sweep"
    array = submit(cluster, workdir, *SHORT, FOUR_RUNS, "--at_once=2")
    lost = folder(workdir, "residual")
    wait_for(lambda: steps_saved(lost))
    cluster.kill_node(NODES[1])
    elements = finish(cluster, array)
    assert [(element.state, element.node) for element in elements] == [("COMPLETED", NODES[0])] * 4
    assert [element.restarts for element in elements] == [0, 1, 0, 0]
    assert (workdir / "report.html").exists()
    assert len([*(workdir / "launch" / "slurm").glob("*-s0.log")]) == 4
    cluster.start_node(NODES[1])
    (process,) = start(whole, FOUR_RUNS, command=("sweep", *SHORT))
    process.communicate(timeout=600)
    assert process.returncode == 0
    for kind, depth in [("plain", 8), ("residual", 8), ("plain", 14), ("residual", 14)]:
        assert_same_bits(*(folder(of, kind, depth).path for of in (whole, workdir)))
    assert lost.status().attempt == 2


def test_two_nodes_train_a_run_together_and_go_on_in_the_same_bits_when_one_was_killed(
    cluster, tmp_path
):
    whole, workdir = tmp_path / "whole", tmp_path / "sweep"
    flags = (*SHORT, "--config.depths=(8,)", *TOGETHER, FIRST_ALONE)
    finish(cluster, submit(cluster, whole, *flags))
    array = submit(cluster, workdir, *flags)
    wait_for(lambda: steps_saved(folder(workdir, "plain")))
    cluster.kill_node(NODES[1])
    wait_for(lambda: cluster.elements(array)[0].state == "PENDING")
    cluster.start_node(NODES[1])
    assert {element.state for element in finish(cluster, array)} == {"COMPLETED"}
    run = folder(workdir, "plain")
    assert_same_bits(folder(whole, "plain").path, run.path)
    assert [entry["process_count"] for entry in run.environments()] == [2, 2]


def test_of_two_nodes_one_that_failed_outranks_the_other_that_lost_it(cluster, tmp_path):
    array = submit(cluster, tmp_path, *LONG, *TOGETHER, FIRST_ALONE)
    run = folder(tmp_path, "plain")
    wait_for(lambda: steps_saved(run))
    shutil.rmtree(run.path)
    (element,) = finish(cluster, array)
    assert (element.state, element.exit_code, element.restarts) == ("FAILED", "1:0", 0)


def test_a_time_limit_stops_a_run_that_is_requeued_and_a_user_one_that_is_not(cluster, tmp_path):
    array = submit(cluster, tmp_path, *LONG, "--option=--time=2", FIRST_ALONE)
    run = folder(tmp_path, "plain")
    wait_for(lambda: cluster.elements(array)[0].restarts == 1)
    status = run.status()
    assert (status.state, status.attempt) == ("preempted", 1)
    assert status.step in steps_saved(run)
    (element,) = cluster.elements(array)
    cluster.run("scontrol", "update", f"JobId={element.job}", "TimeLimit=60")
    wait_for(lambda: run.status().attempt == 2 and max(steps_saved(run)) > status.step)
    cluster.run("scancel", str(array))
    (element,) = finish(cluster, array)
    assert (element.state, element.restarts) == ("CANCELLED", 1)
    assert run.status().state == "preempted"


def test_what_slurm_refuses_is_one_line_with_its_reason_and_status_1(cluster, tmp_path):
    done = launch(cluster, tmp_path, *SHORT, "--option=--partition=none")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert f"sbatch refused {tmp_path}/launch/slurm/sweep.sbatch: " in line
    assert "Invalid partition name" in line
