"""Several processes that train one run, over loopback, and what may befall them."""

import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from resnet_flax.runtime import interrupt
from resnet_flax.storage.checkpoints import Checkpoints
from resnet_flax.storage.run_folder import RunFolder
from tests import varied
from tests.end_to_end.processes import (
    SECONDS,
    STREAM,
    SWEEP,
    assert_same_bits,
    end,
    finish,
    free_port,
    signal_one,
    start,
    until_it_trains,
)


def state_of(workdir):
    return Checkpoints(RunFolder(workdir).checkpoints).restore()


def assert_close(one, other):
    # 1e-3: float32 sums in another order, through 120 steps.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3),
        *(state_of(workdir) for workdir in (one, other)),
    )
    errors = [
        [(r["step"], r["error"]) for r in RunFolder(path).metrics() if "split" in r]
        for path in (one, other)
    ]
    assert errors[0] == errors[1]


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    """A run of one process with four devices."""
    workdir = tmp_path_factory.mktemp("one") / "run"
    finish(workdir, devices=4)
    return workdir


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """An undisturbed run of two processes with two devices each, told of each other by Slurm."""
    workdir = tmp_path_factory.mktemp("two") / "run"
    port = str(free_port())
    running = [
        start(
            workdir, devices=2, SLURM_JOB_ID="1", SLURM_STEP_NODELIST="localhost",
            SLURM_NTASKS="2", SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank),
            JAX_COORDINATOR_PORT=port,
        )
        for rank in range(2)
    ]  # fmt: skip
    statuses, lines = end([process for (process,) in running])
    assert statuses == [0, 0], lines
    return workdir


def test_two_processes_of_two_devices_train_as_one_of_four(one_process, two_processes):
    assert_close(one_process, two_processes)
    (environment,) = RunFolder(two_processes).environments()
    assert (environment["process_count"], environment["device_count"]) == (2, 4)
    steps = [r["step"] for r in RunFolder(two_processes).metrics() if r["kind"] == "train"]
    assert steps == list(range(10, 121, 10))


@pytest.mark.parametrize(
    "lost, told",
    [
        ((1, signal.SIGKILL), None),
        pytest.param((1, signal.SIGKILL), (1, signal.SIGTERM), marks=pytest.mark.slow),
        pytest.param((0, signal.SIGSTOP), (0, signal.SIGINT), marks=pytest.mark.slow),
    ],
)
def test_a_lost_peer_or_a_signal_to_any_one_ends_all_with_75_and_no_bit_is_lost(
    two_processes, tmp_path, lost, told
):
    workdir = tmp_path / "run"

    def go_on():
        return start(workdir, processes=2, devices=2)

    statuses, (line,) = signal_one(go_on(), *lost)
    assert statuses == [75]
    assert line.startswith("train: Lost a peer")
    if told:
        statuses, lines = signal_one(go_on(), *told)
        assert statuses == [75, 75], lines
        status = RunFolder(workdir).status()
        assert status.state == "preempted"
        assert status.step in Checkpoints(RunFolder(workdir).checkpoints).steps()
    statuses, lines = end(go_on())
    assert statuses == [0, 0], lines
    assert_same_bits(two_processes, workdir)
    assert RunFolder(workdir).status().attempt == (3 if told else 2)


@pytest.mark.slow
def test_a_run_goes_on_on_another_number_of_processes_and_devices_under_shard_map(
    one_process, tmp_path
):
    workdir, backend = tmp_path / "run", "--config.parallel=shard_map"
    for processes, devices in [(1, 4), (2, 2)]:
        running = start(workdir, backend, processes=processes, devices=devices)
        statuses, lines = signal_one(running, 0, signal.SIGTERM)
        assert set(statuses) == {75}, lines
    finish(workdir, backend, devices=1)
    counts = [(e["process_count"], e["device_count"]) for e in RunFolder(workdir).environments()]
    assert counts == [(1, 4), (2, 4), (1, 1)]
    assert_close(one_process, workdir)


@pytest.mark.slow
def test_two_processes_begin_alike_where_the_initial_state_depends_on_images(tmp_path):
    one, two, twin = tmp_path / "one", tmp_path / "two", "--config.optim.norms_of=none"
    finish(one, twin, devices=4)
    finish(two, twin, processes=2, devices=2)
    assert_close(one, two)


@pytest.mark.slow
def test_two_processes_sweep_together_and_leave_a_run_that_is_held_to_its_holder(tmp_path):
    held = RunFolder(tmp_path / "plain-8-s0")

    def sweep():
        return end(start(tmp_path, command=SWEEP, processes=2))

    with held.claim({}, print):
        held.config_file.unlink()
        assert sweep()[0] == [75, 75]
    states = [RunFolder(tmp_path / f"{kind}-8-s0").status() for kind in ("plain", "residual")]
    assert [status and status.state for status in states] == [None, "finished"]
    assert sweep()[0] == [0, 0]
    assert held.status().state == "finished"
    assert (tmp_path / "degradation.svg").exists()


@pytest.mark.parametrize(
    "last, difference",
    [
        (
            ["--config.seed=1", "--config.eval_every=20"],
            "config.eval_every (40 in process 0, 20 in process 1); config.seed (0 in process 0, 1",
        ),
        pytest.param(["--from_scratch"], "from_scratch (False in p", marks=pytest.mark.slow),
        pytest.param(["--config.log_every=7"], "to be a multiple of", marks=pytest.mark.slow),
    ],
)
def test_two_processes_that_were_given_different_things_are_told_and_write_nothing(
    tmp_path, last, difference
):
    statuses, lines = end(start(tmp_path / "run", processes=2, last=last))
    assert statuses == [2, 2], lines
    assert all(difference in line and line.startswith("train: ") for line in lines), lines
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_two_processes_with_different_data_of_one_name_are_told(tmp_path):
    folders = [str(tmp_path / name) for name in ("one", "other")]
    varied.prepare(folders[0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(varied, "pixels", lambda number, pixels=varied.pixels: 255 - pixels(number))
        varied.prepare(folders[1])
    options = {"command": ("train", *STREAM), "processes": 2}
    data = [f"--config.data.data_dir={folder}" for folder in folders]
    statuses, lines = end(start(tmp_path / "run", data[0], last=data[1:], **options))
    assert statuses == [2, 2], lines
    assert all("different test.records ('" in line for line in lines), lines


@pytest.mark.slow
def test_two_processes_of_different_runs_of_a_sweep_are_told(tmp_path):
    only = ["--only=plain-8-s0"]
    statuses, lines = end(start(tmp_path, command=SWEEP, processes=2, last=only))
    assert statuses == [2, 2], lines
    assert "runs.residual-8-s0 ('begun' in process 0, 'absent' in process 1)" in lines[0]


_ALIKE = """
import sys
from resnet_flax import errors
from resnet_flax.runtime import hosts

rank = int(sys.argv[2])
with hosts.together(sys.argv[1], 2, rank, 30):
    with hosts.alike() as facts:
        facts |= {"name": "run", "config": {"lr": 0.1}}
    try:
        with hosts.alike():
            if rank == 1:
                raise errors.TryAgainError("The folder is in use.")
    except errors.TryAgainError as error:
        print(error)
    with hosts.alike() as facts:
        facts |= {"config": {"lr": [0.1, 0.2][rank]}, "data": {"images": 60000}}
"""


def test_a_block_ends_alike_in_both_processes_with_an_error_of_one_or_a_difference():
    coordinator = f"127.0.0.1:{free_port()}"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _ALIKE, coordinator, str(rank)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=SECONDS) for process in processes]
    assert [out for out, _ in said] == [
        "Process 1: The folder is in use.\n",
        "The folder is in use.\n",
    ], said
    assert [process.returncode for process in processes] == [2, 2]
    expected = "got different config.lr (0.1 in process 0, 0.2 in process 1)."
    assert all(errors.splitlines()[-1].endswith(expected) for _, errors in said), said


# As a scheduler's library may call what trains: not on the main thread.
_IN_A_THREAD = """
import sys, threading, time
from resnet_flax.runtime.hosts import together
from resnet_flax.runtime.interrupt import StopRequest

def train():
    with together(sys.argv[1], 2, int(sys.argv[2]), 30), StopRequest() as stop:
        print("trains", flush=True)
        while not stop.reached():
            time.sleep(0.1)
        print(stop.received)

thread = threading.Thread(target=train)
thread.start()
thread.join()
"""


def test_a_sigterm_to_one_of_two_stops_both_where_they_train_in_a_thread():
    coordinator = f"127.0.0.1:{free_port()}"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _IN_A_THREAD, coordinator, str(rank)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    assert [process.stdout.readline() for process in processes] == ["trains\n"] * 2
    processes[1].send_signal(signal.SIGTERM)
    said = [process.communicate(timeout=SECONDS) for process in processes]
    assert [out for out, _ in said] == ["a signal to one of the processes\n"] * 2, said


def test_a_second_signal_ends_a_process_at_once_even_while_it_compiles(tmp_path):
    cache = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache")}
    (process,) = start(tmp_path / "run", "--config.model.depth=110", **cache)
    while not RunFolder(tmp_path / "run").environments():
        assert process.poll() is None
    while process.poll() is None:  # Signals that come sooner are one request.
        process.send_signal(signal.SIGTERM)
        time.sleep(interrupt.SAME_REQUEST_SECONDS + 0.5)
    assert process.wait(timeout=SECONDS) == 128 + signal.SIGTERM
    process.communicate()


def test_a_second_process_is_refused_by_name_while_the_first_one_trains(tmp_path):
    (first,) = running = start(tmp_path / "run", "--config.steps=20000")
    until_it_trains(running)
    statuses, (line,) = end(start(tmp_path / "run", "--config.steps=20000"))
    assert statuses == [75]
    assert f"run is in use by process {first.pid} on" in line
    assert ", started 20" in line
    assert RunFolder(tmp_path / "run").status().attempt == 1
    first.send_signal(signal.SIGTERM)
    assert end(running)[0] == [75]
