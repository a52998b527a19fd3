"""Starts `experiments.train` as a user does, alone or as several processes that train together."""

import os
import signal
import socket
import subprocess
import sys

from experiments.soak import mismatches
from resnet_flax.storage.run_folder import RunFolder

SECONDS = 600  # A guard against hanging; what it waits for takes seconds on a quiet machine.
FLAGS = (
    "--config=configs/digits.py:resnet8", "--config.steps=120", "--config.log_every=10",
    "--config.eval_every=40", "--config.checkpoint_every=20", "--config.steps_per_dispatch=10",
    "--config.model.widths=(4,8,8)", "--config.model.bn_scope=global",
    "--config.data.batch_size=16", "--config.data.train_split=train[:92]",
    "--config.data.test_split=test[:37]", "--config.optim.boundaries=(60,)",
)  # fmt: skip

# Of images that are read as they are needed.
STREAM = (
    "--config=configs/imagenet.py:resnet18", "--config.steps=40", "--config.log_every=5",
    "--config.eval_every=20", "--config.checkpoint_every=10", "--config.model.family=cifar",
    "--config.model.depth=8", "--config.model.widths=(4,4,8)",
    "--config.model.bn_scope=global", "--config.optim.lr=0.02", "--config.optim.boundaries=(20,)",
    "--config.data.name=varied", "--config.data.batch_size=8", "--config.data.eval_batch_size=16",
    "--config.data.image_size=32", "--config.data.shorter_side=(36,60)",
)  # fmt: skip

SWEEP = (
    "sweep", "--config=configs/degradation.py:digits", "--config.depths=(8,)",
    "--config.seeds=(0,)", *(flag.replace("--config.", "--config.run.") for flag in FLAGS[1:]),
)  # fmt: skip


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start(
    workdir,
    *flags,
    command=("train", *FLAGS),
    processes=1,
    devices=1,
    heartbeat=6,
    last=(),
    **environment,
):
    """The processes of one run, with so many virtual devices each.

    `last`: more flags, of the last process alone.
    """
    module, *fixed = command
    command = [sys.executable, "-m", f"experiments.{module}", *fixed, *flags]
    command.append(f"--workdir={workdir}")
    peers = []
    if processes > 1:
        peers += [f"--coordinator=127.0.0.1:{free_port()}", f"--num_processes={processes}"]
        peers += [f"--heartbeat_seconds={heartbeat}"]
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices)} | environment
    return [
        subprocess.Popen(
            [
                *command,
                *peers,
                *([f"--process_id={rank}"] if peers else []),
                *(last if rank == processes - 1 else ()),
            ],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]


def end(running):
    """(exit statuses, the last line of each on stderr) once all have ended."""
    outputs = [process.communicate(timeout=SECONDS) for process in running]
    lines = [errors.splitlines()[-1:] for _, errors in outputs]
    return [process.returncode for process in running], ["".join(line) for line in lines]


def finish(workdir, *flags, **kwargs):
    """Trains to the end."""
    statuses, lines = end(start(workdir, *flags, **kwargs))
    assert set(statuses) == {0}, lines


def until_it_trains(running, records=2):
    """Returns once so many train records were printed."""
    for line in running[0].stdout:
        records -= "images/s" in line
        if records == 0:
            return
    raise AssertionError(f"Ended before: {end(running)}")


def signal_one(running, rank, number):
    """Sends a signal to one of the processes while they train; what `end` then says.

    One that is killed or frozen is left out of it.
    """
    until_it_trains(running)
    running[rank].send_signal(number)
    gone = number in (signal.SIGKILL, signal.SIGSTOP)
    others = [process for process in running if not gone or process is not running[rank]]
    try:
        return end(others)
    finally:
        running[rank].kill()
        running[rank].communicate()


def assert_same_bits(one, other):
    assert mismatches(one, other) == []
    recorded = [(r["step"], r.get("split")) for r in RunFolder(other).metrics()]
    assert len(set(recorded)) == len(recorded)
