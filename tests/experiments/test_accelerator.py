"""The first minutes on an accelerator, rehearsed on this machine's CPU with tiny networks."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from experiments import accelerator
from experiments.benchmarks import agreement, sharing
from experiments.soak import mismatches
from resnet_flax.errors import FaultError, UserError
from resnet_flax.runtime import cpu, interrupt
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


@pytest.mark.slow
def test_what_a_module_prints_in_time_is_kept_and_the_rest_left_out():
    fields = json.dumps({"depth": 8, "size": 8, "channels": 1, "batch_size": 8})
    rows, is_final = accelerator.rows_of(["experiments.benchmarks.sharing", fields], 600)
    assert is_final
    assert [row["runs_at_once"] for row in rows] == list(sharing.COUNTS)
    assert all(row["dispatches_per_s"] > 0 for row in rows)
    with pytest.raises(FaultError, match="nothing was measured: the time was too short"):
        accelerator.rows_of(["experiments.benchmarks.sharing", fields], 0.1)


def start(workdir, *flags):
    """The command, in a group of processes of its own."""
    command = [sys.executable, "-m", "experiments.accelerator", *SWEEP[1:], *flags]
    command += [f"--workdir={workdir}", "--torch_python=none"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    )


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--config.depths=(21,)"], "Run plain-21-s0: Expected a depth of"),
        (["--config.run.steps=9"], "holds a sweep of another recipe: steps"),
    ],
)
def test_a_sweep_that_cannot_begin_costs_no_minute(tmp_path, flags, said):
    shutil.copy("experiments/results/digits/sweep.json", tmp_path)
    command = [sys.executable, "-m", "experiments.accelerator", f"--workdir={tmp_path}"]
    command += ["--config=configs/degradation.py:digits", "--minutes=0.1", *flags]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stdout == ""


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3])  # Three devices do not share 128 images.
def test_training_on_a_cpu_agrees_with_itself_and_resumes_in_the_same_bits(
    tmp_path, monkeypatch, count
):
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", str(count))
    found = agreement.check(tmp_path, SECONDS, "cpu", count)
    assert found["agrees"], found
    assert found["was_killed"] and found["resumed_from_step"] >= 40
    assert found["resumes_in_the_same_bits"], found["differing"]


@pytest.mark.slow
def test_it_goes_on_elsewhere_from_the_folder_of_a_machine_that_vanished(tmp_path):
    steps = ("--config.run.steps=2000", "--config.run.optim.boundaries=(1000,)", "--at_once=2")
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    process = start(here, *steps, "--minutes=60")
    run = RunFolder(here / RUNS[0])
    while process.poll() is None:
        if run.path.exists() and any(record["step"] >= 40 for record in run.metrics()):
            break
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert run.status().state == "running"

    here.rename(elsewhere)
    for _ in range(5):  # A busy machine may need several times these minutes.
        said, _ = start(elsewhere, *steps, "--minutes=4").communicate(timeout=2 * SECONDS)
        states = [RunFolder(elsewhere / name).status().state for name in RUNS]
        if states == ["finished", "finished"]:
            break
    assert states == ["finished", "finished"], said
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
    if process.returncode == 1:  # On a busy machine.
        assert "The check failed or did not end" in said
    else:
        assert process.returncode == 75, said
        status = RunFolder(tmp_path / RUNS[0]).status()
        assert status.state == "preempted" and status.step > 0


@pytest.mark.parametrize(
    "statuses, status", [({0, -9}, 1), ({-9}, 1), ({0, 75}, 75), ({-9, 75}, 75), ({0, 2}, 2)]
)
def test_a_process_that_was_killed_is_no_success(statuses, status):
    assert accelerator.worst(statuses) == status


def test_what_is_not_final_is_tried_again_and_what_is_final_is_not(tmp_path):
    file = tmp_path / "first_minutes.json"
    for tried, seen in (((1, False), 1), ((2, True), 2), ((3, True), 2)):
        record = accelerator.Record(file, "1 x H100, gpu")
        assert record.once("check", [accelerator.Finding(*tried)].pop) == seen
        name = "check" if seen == 2 else "check, not final"
        assert json.loads(file.read_text()) == {"1 x H100, gpu": {name: seen}}


@pytest.mark.parametrize("status", [0, 1])
def test_rows_of_a_module_that_failed_are_not_final(status):
    script = f"print('{{}}', flush=True); import os; os._exit({status})"
    rows = accelerator.rows_of(["timeit", "-n1", "-r1", script], SECONDS)
    assert rows == ([{}], not status)


PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print('{"child": %d}' % child.pid, flush=True)
time.sleep(600)
"""


def test_a_module_whose_time_is_over_ends_with_all_that_it_started():
    (row,), is_final = accelerator.rows_of(["timeit", "-n1", "-r1", f"exec({PARENT!r})"], 5)
    assert not is_final
    for _ in range(600):
        try:
            os.kill(row["child"], 0)
            state = Path(f"/proc/{row['child']}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return
        if state == "Z":  # It has ended. Where the first process reaps nobody, it stays.
            return
        time.sleep(0.1)
    pytest.fail("It goes on.")


@pytest.mark.parametrize("step, is_well", [(40, True), (0, False)])
def test_a_check_that_resumed_nothing_is_no_success(step, is_well):
    found = {"agrees": True, "resumed_from_step": step, "resumes_in_the_same_bits": True}
    assert accelerator._is_well(found) == is_well


def test_a_record_of_another_shape_is_refused_in_words(tmp_path):
    (tmp_path / "first_minutes.json").write_text("[]")
    with pytest.raises(UserError, match=r"got other JSON\. Move it\."):
        accelerator.Record(tmp_path / "first_minutes.json", "1 x H100, gpu")


def test_a_module_that_ends_at_once_is_not_said_to_be_slow():
    with pytest.raises(FaultError, match="nothing was measured: the process ended with status 1"):
        accelerator.rows_of(["experiments.nothere"], SECONDS)


@pytest.mark.parametrize(
    "given, names",
    [
        ({}, ["0", "1"]),
        ({"CUDA_VISIBLE_DEVICES": ""}, ["0", "1"]),
        ({"CUDA_VISIBLE_DEVICES": "2,3"}, ["2", "3"]),
        ({"CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b,GPU-c"}, ["GPU-a", "GPU-b"]),
    ],
)
def test_runs_get_the_gpus_that_the_command_may_see(given, names):
    found = {"platform": "gpu", "count": 2, "chips": 2}
    places = accelerator.places(given, found, 2)
    assert [place["CUDA_VISIBLE_DEVICES"] for place in places] == names * 2
    assert {place["XLA_CLIENT_MEM_FRACTION"] for place in places} == {"0.450"}


@pytest.mark.parametrize(
    "variables, platform, chips, at_once, places",
    [
        ({}, "tpu", 4, 1, ["0", "1", "2", "3"]),
        ({"TPU_VISIBLE_CHIPS": "2,3"}, "tpu", 2, 1, ["2", "3"]),
        ({"TPU_VISIBLE_CHIPS": ""}, "tpu", 2, 1, ["0", "1"]),
        ({}, "tpu", 1, 1, [None]),
        ({}, "cpu", 2, 1, [None]),
        ({}, "cpu", 2, 3, [None] * 3),
    ],
)
def test_a_run_gets_one_chip_of_a_tpu(variables, platform, chips, at_once, places):
    found = {"platform": platform, "count": 2 * chips, "chips": chips}
    given = accelerator.places({"A": "b"} | variables, found, at_once)
    assert [place.get("TPU_VISIBLE_CHIPS") for place in given] == places
    assert all(place["A"] == "b" for place in given)
    bounds = [place.get("TPU_CHIPS_PER_HOST_BOUNDS") for place in given]
    assert bounds == ["1,1,1" if place else None for place in places]


@pytest.mark.skipif(cpu.nvidia_or_tpu() is not None, reason="jax may find a device")
def test_minutes_are_not_spent_on_a_cpu_that_nobody_asked_for(monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS")
    with pytest.raises(UserError, match=r"only the CPU\. .*PLUGIN=cuda13"):
        accelerator.device(SECONDS)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert accelerator.device(SECONDS)["platform"] == "cpu"


@pytest.mark.skipif(cpu.nvidia_or_tpu() is not None, reason="jax may find a device")
def test_why_jax_does_not_open_a_device_is_said(monkeypatch, tmp_path):
    plugin = tmp_path / "jax_plugins" / "broken"
    plugin.mkdir(parents=True)
    (plugin / "__init__.py").write_text("def initialize():\n    raise RuntimeError('too old')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.delenv("JAX_PLATFORMS")
    with pytest.raises(UserError, match=r"the CPU, and says: RuntimeError: too old\. .*cuda12"):
        accelerator.device(SECONDS)


def test_a_device_that_does_not_open_ends_the_command():
    with pytest.raises(UserError, match="jax opened no device in 0 s"):
        accelerator.device(0.01)


SAVES = """
import pathlib, signal, sys, time
def save(*_):
    time.sleep({seconds})
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
pathlib.Path({ready!r}).touch()
time.sleep(600)
"""


@pytest.mark.parametrize(
    "second, after, seconds, status",
    [
        (signal.SIGHUP, 0.1, 0.5, 75),  # The same request: it waits until all have saved.
        (signal.SIGUSR1, 1.5, 600, -signal.SIGKILL),  # Another one: nobody goes on.
    ],
)
def test_signals_leave_no_process_behind_and_one_request_lets_it_save(
    tmp_path, second, after, seconds, status
):
    before = {each: signal.getsignal(each) for each in (signal.SIGUSR1, signal.SIGHUP)}
    ready = tmp_path / "ready"
    script = SAVES.format(seconds=seconds, ready=str(ready))
    timer = threading.Timer(after, os.kill, (os.getpid(), second))
    try:
        interrupt.end_on(*before)
        with (
            pytest.raises(SystemExit),
            accelerator.group([[sys.executable, "-c", script]], [os.environ]) as processes,
        ):
            while not ready.exists():
                time.sleep(0.01)
            timer.start()
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(600)
        timer.join()
    finally:
        timer.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)
    assert processes[0].returncode == status


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_with_all_that_it_started(tmp_path, number):
    process = start(tmp_path, "--minutes=60")
    assert process.stdout
    assert process.stdout.readline().startswith("device:")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while not (started := children.read_text().split()):
        time.sleep(0.1)
    process.send_signal(number)
    process.communicate(timeout=SECONDS)
    assert process.returncode == 128 + number
    assert not any(Path("/proc", child).exists() for child in started)
