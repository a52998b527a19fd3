"""Sweeps on Ray as a user runs them: real clusters on this machine, and what may befall them."""

import itertools
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.soak import mismatches
from resnet_flax.storage.run_folder import RunFolder
from tests.cluster.ray_cluster import RayCluster
from tests.end_to_end.processes import FLAGS

SECONDS = 900  # The time of minutes of work on a busy machine.
SEEDS = (0, 1)
NAMES = [f"{kind}-8-s{seed}" for kind, seed in itertools.product(("plain", "residual"), SEEDS)]
SWEEP = (
    "--config=configs/degradation.py:digits", "--config.depths=(8,)", f"--config.seeds={SEEDS}",
    *(flag.replace("--config.", "--config.run.") for flag in FLAGS[1:]),
)  # fmt: skip
LONG = ("--config.run.steps=1200", "--config.run.optim.boundaries=(600,)")
TOKEN = secrets.token_hex(32)


def start(workdir, *flags, **environment):
    command = [sys.executable, "-m", "experiments.sweep", *SWEEP, *flags, f"--workdir={workdir}"]
    environment = os.environ | {"RAY_AUTH_TOKEN": TOKEN} | environment
    # The user's own cache is tested.
    environment["XDG_CACHE_HOME"] = environment.pop("JAX_COMPILATION_CACHE_DIR")
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def end(process):
    """Its exit status and what it said."""
    said, _ = process.communicate(timeout=SECONDS)
    return process.returncode, said


def wait_for(sign, process):
    end = time.monotonic() + SECONDS
    while not sign():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)


def state_of(workdir, name):
    status = RunFolder(workdir / name).status()
    return status and status.state


def attempt_of(workdir, name):
    status = RunFolder(workdir / name).status()
    return status and status.attempt


def saved(workdir, name):
    """Whether a run is under way, and has something to go on from."""
    status = RunFolder(workdir / name).status()
    return status is not None and status.state == "running" and status.step > 0


def assert_same(one, other, names=NAMES):
    differing = {name: mismatches(one / name, other / name) for name in names}
    assert not any(differing.values()), differing


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The long sweep in one process, with one device."""
    workdir = tmp_path_factory.mktemp("undisturbed")
    status, said = end(start(workdir, *LONG, JAX_NUM_CPU_DEVICES="1"))
    assert status == 0, said
    return workdir


@pytest.fixture
def cluster():
    made = RayCluster(TOKEN)
    yield made
    made.close()


def test_a_sweep_on_all_devices_of_this_machine_ends_in_the_bits_of_one_in_a_single_process(
    tmp_path,
):
    here, on_ray = tmp_path / "here", tmp_path / "ray"
    names = NAMES[:2]  # Two seeds of one network.
    only = f"--only={','.join(names)}"
    status, said = end(start(here, only, JAX_NUM_CPU_DEVICES="1"))
    assert status == 0, said
    in_the_way = on_ray / NAMES[0] / "checkpoints"
    in_the_way.parent.mkdir(parents=True)
    in_the_way.touch()  # A run that cannot save.
    status, said = end(start(on_ray, only, "--engine=ray", "--max_failures=1"))
    assert status == 1, said
    assert f"{NAMES[0]}: tried again, 1 of 1: {NAMES[0]}: [Errno 17] File exists" in said, said
    assert said.count("File exists") == 2, said
    assert f"{NAMES[0]}: failed: " in said
    assert "1 of 2 runs finished; 1 failed. Run the same command again" in said
    cache = Path(os.environ["JAX_COMPILATION_CACHE_DIR"], "resnet_flax", "xla")
    programs = set(cache.iterdir())
    for program in programs:
        program.write_bytes(program.read_bytes()[:100])  # As by a kill in the act.
    in_the_way.unlink()
    status, said = end(start(on_ray, only, "--engine=ray"))
    assert status == 0, said
    assert_same(here, on_ray, names)
    assert (on_ray / "report.html").exists()
    # The other seed had them compiled, and none of it comes from the sweep's folder.
    assert programs and set(cache.iterdir()) == programs
    assert not (on_ray / "xla").exists()
    assert [len(RunFolder(on_ray / name).environments()) for name in names] == [1, 1]


@pytest.mark.cluster
@pytest.mark.parametrize("alone", [True, False], ids=["raylet", "node"])
def test_a_lost_node_loses_no_run_and_no_bit(undisturbed, cluster, tmp_path, alone):
    nodes = [cluster.add() for _ in range(2)]
    sweep = start(tmp_path, "--engine=ray", f"--address={cluster.address}", *LONG)
    wait_for(lambda: sum(saved(tmp_path, name) for name in NAMES) == 2, sweep)
    cluster.kill(nodes[0], alone=alone)
    status, said = end(sweep)
    assert status == 0, said
    assert_same(undisturbed, tmp_path)
    attempts = sorted(RunFolder(tmp_path / name).status().attempt for name in NAMES)
    if not alone:
        assert said.count("its node was lost; it is placed again") == 1, said
        assert attempts == [1, 1, 1, 2]


@pytest.mark.cluster
def test_runs_share_a_gpu_each_with_its_part_of_the_memory(undisturbed, cluster, tmp_path):
    """The GPU is Ray's word for it; what stands in for it here is a core."""
    node = cluster.add(cores=2, gpus=1)
    flags = ("--engine=ray", f"--address={cluster.address}", "--runs_per_device=2", *LONG)
    sweep = start(tmp_path, *flags, JAX_NUM_CPU_DEVICES="1")
    wait_for(lambda: sum(saved(tmp_path, name) for name in NAMES) == 2, sweep)
    shares = [
        process.environ().get("XLA_CLIENT_MEM_FRACTION")
        for process in cluster.processes(node)
        if process.name().removeprefix("ray::") in NAMES
    ]
    assert shares == ["0.450"] * 2
    status, said = end(sweep)
    assert status == 0, said
    assert "2 runs share each of them." in said
    assert_same(undisturbed, tmp_path)


@pytest.mark.cluster
def test_after_the_driver_is_killed_the_same_command_runs_only_what_is_missing(
    undisturbed, cluster, tmp_path
):
    cluster.add(cores=2)
    flags = ("--engine=ray", f"--address={cluster.address}", *LONG)
    sweep = start(tmp_path, *flags)
    wait_for(lambda: [state_of(tmp_path, name) for name in NAMES].count("finished") == 2, sweep)
    wait_for(lambda: any(saved(tmp_path, name) for name in NAMES), sweep)
    ended = [name for name in NAMES if state_of(tmp_path, name) == "finished"]
    unchanged = [(tmp_path / name / "metrics.jsonl").stat() for name in ended]
    sweep.kill()
    end(sweep)
    status, said = end(start(tmp_path, *flags))
    assert status == 0, said
    assert [(tmp_path / name / "metrics.jsonl").stat() for name in ended] == unchanged
    assert_same(undisturbed, tmp_path)


@pytest.mark.cluster
def test_a_signal_saves_every_run_and_the_same_command_goes_on(undisturbed, tmp_path):
    sweep = start(tmp_path, "--engine=ray", *LONG)
    wait_for(lambda: sum(saved(tmp_path, name) for name in NAMES) == 2, sweep)
    sweep.send_signal(signal.SIGINT)
    status, said = end(sweep)
    assert status == 75, said
    states = [state_of(tmp_path, name) for name in NAMES]
    assert states.count("preempted") == 2 and states.count(None) == 2, states
    status, said = end(start(tmp_path, "--engine=ray", *LONG))
    assert status == 0, said
    assert_same(undisturbed, tmp_path)


@pytest.mark.cluster
def test_a_sweep_on_ray_in_a_bucket_ends_in_the_bits_of_one_on_a_disk(tmp_path, bucket):
    status, said = end(start(tmp_path, JAX_NUM_CPU_DEVICES="1"))
    assert status == 0, said
    status, said = end(start(bucket, "--engine=ray"))
    assert status == 0, said
    assert_same(tmp_path, bucket)
    assert not (bucket / "xla").is_dir()


def add_host(cluster, name, host):
    """One of the two of a TPU slice, of which two virtual devices stand for the chips."""
    return cluster.add(
        resources={"TPU": 4, "accelerator_type:TPU-V4": 1}
        | ({"TPU-v4-16-head": 1} if host == 0 else {}),
        labels={
            "ray.io/tpu-slice-name": name, "ray.io/tpu-worker-id": host,
            "ray.io/tpu-pod-type": "v4-16", "ray.io/tpu-topology": "2x2x2",
        },
        TPU_NAME=name, TPU_WORKER_ID=str(host), TPU_ACCELERATOR_TYPE="v4-16",
        TPU_TOPOLOGY="2x2x2", JAX_PLATFORMS="cpu",
    )  # fmt: skip


@pytest.mark.cluster
def test_runs_queue_for_tpu_slices_and_a_lost_host_moves_its_run_to_another(cluster, tmp_path):
    names = NAMES[:3]
    hosts = {(name, host): add_host(cluster, name, host) for name in "ab" for host in range(2)}
    flags = ("--config.run.steps=400", f"--only={','.join(names)}")
    shared = {"JAX_NUM_CPU_DEVICES": "2"}
    on_ray = ("--engine=ray", f"--address={cluster.address}", "--slice=v4-16")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    status, said = end(start(whole, *on_ray, *flags, **shared))
    assert status == 0, said
    sweep = start(killed, *on_ray, *flags, **shared)
    wait_for(lambda: sum(saved(killed, name) for name in names) == 2, sweep)
    sweep.send_signal(signal.SIGINT)
    status, said = end(sweep)
    assert status == 75, said
    sweep = start(killed, *on_ray, *flags, **shared)
    wait_for(lambda: sum(attempt_of(killed, name) == 2 for name in names) == 2, sweep)
    cluster.kill(hosts["a", 1], alone=False)
    status, said = end(sweep)
    assert status == 0, said
    assert said.count("a host was lost; it is placed again") == 1, said
    assert_same(whole, killed, names)
    environment = RunFolder(killed / names[0]).environments()[0]
    assert (environment["process_count"], environment["device_count"]) == (2, 4)


@pytest.mark.cluster
def test_a_gang_says_what_its_hosts_refuse_and_ends_also_while_it_waits_for_one(cluster, tmp_path):
    flags = (
        "--engine=ray", f"--address={cluster.address}", "--slice=v4:2x2x2", "--max_failures=0",
        f"--only={NAMES[0]}",
    )  # fmt: skip
    add_host(cluster, "a", 0)
    waiting = start(tmp_path / "waiting", *flags)
    time.sleep(30)  # Far longer than it takes to begin.
    waiting.send_signal(signal.SIGINT)
    status, said = end(waiting)
    assert (status, f"{NAMES[0]}: preempted" in said) == (75, True), said
    add_host(cluster, "a", 1)
    nowhere = "--config.run.init_from=nowhere"
    status, said = end(start(tmp_path / "refused", *flags, nowhere, JAX_NUM_CPU_DEVICES="2"))
    assert (status, bool(re.search("failed: .*nowhere", said))) == (1, True), said


@pytest.mark.cluster
def test_what_cannot_be_used_is_one_line(cluster, tmp_path):
    cluster.add(cores=1)
    there = f"--address={cluster.address}"
    without_ray = tmp_path / "without"
    without_ray.mkdir()
    (without_ray / "ray.py").write_text("raise ImportError('No module named ray')")
    wrong = {"RAY_AUTH_TOKEN": "0" * 64}
    for flags, environment, line in [
        (
            ["--engine=ray"],
            {"PYTHONPATH": str(without_ray)},
            r"Expected Ray .*pip install -e '\.\[ray\]'",
        ),
        (["--engine=ray", "--address=127.0.0.1:1"], {}, r"Expected --address=HOST:PORT .*refused"),
        (["--engine=ray", "--address=here"], {}, r"Expected --address=HOST:PORT .*got here"),
        (["--engine=ray", there], wrong, r"refused this user"),
        (
            ["--engine=ray", there, "--devices_per_run=2"],
            {},
            r"of at most 1, the CPU count .*got 2",
        ),
        (["--engine=ray", there, "--runs_per_device=2"], {}, r"=1, .*got 2 where .* the CPUs"),
        (["--engine=ray", there, "--slice=v5e-17"], {}, r"that the cluster has \(none\).*'v5e-17'"),
        ([there], {}, r"Expected --engine=ray with --address"),
        (["--engine=ray", "--num_processes=2"], {}, r"Expected --engine=local with --num_proc"),
        (["--only=plain-8-s7"], {}, r"Expected --only with .* plain-8-s0, .*; got plain-8-s7"),
    ]:
        status, said = end(start(tmp_path / "run", *flags, **environment))
        assert (status, len(said.splitlines())) == (2, 1), (flags, said)
        assert re.search(line, said), said
    assert not (tmp_path / "run").exists()
