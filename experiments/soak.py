"""Kills training runs again and again. Compares their results with those of undisturbed runs.

.venv/bin/python -m experiments.soak --workdir=runs/soak --kills=5
"""

import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags

from experiments import cli
from resnet_flax.errors import FaultError, UserError
from resnet_flax.storage import filesystem
from resnet_flax.storage.checkpoints import Checkpoints
from resnet_flax.storage.filesystem import AnyPath
from resnet_flax.storage.run_folder import RunFolder

# A short run that saves and evaluates often, so that kills hit these moments.
FLAGS = (
    "--config.steps=600", "--config.log_every=20", "--config.eval_every=60",
    "--config.checkpoint_every=60", "--config.steps_per_dispatch=20", "--config.model.depth=8",
    "--config.model.widths=(4,8,8)", "--config.data.batch_size=32",
    "--config.optim.boundaries=(300,450)",
)  # fmt: skip


class Outcome(NamedTuple):
    """The outcome of a run that was killed several times."""

    kills: Counter[str]
    """How many, by moment."""
    attempts: int
    mismatches: list[str]
    """Differences from the undisturbed run; there should be none."""


def start(
    net: str, workdir: Path, devices: int, options: Sequence[str] = ()
) -> subprocess.Popen[bytes]:
    """Starts training in a process of its own, on `devices` virtual CPU devices."""
    command = [sys.executable, "-m", "experiments.train", f"--config=configs/digits.py:{net}"]
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": str(devices)}
    command += [f"--workdir={workdir}", *FLAGS, *options]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)


def soak(
    net: str, workdir: Path, devices: int, options: Sequence[str], kills: int, rng: random.Random
) -> Outcome:
    """Trains `net` undisturbed, and again with `kills` kills, at each moment in turn."""
    whole, killed = workdir / "whole", workdir / "killed"
    shutil.rmtree(workdir, ignore_errors=True)
    finish(start(net, whole, devices, options))
    counts: Counter[str] = Counter()
    for name in itertools.islice(itertools.cycle(MOMENTS), kills):
        process = start(net, killed, devices, options)
        MOMENTS[name](killed, process, rng)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait()
            counts[name] += 1
    finish(start(net, killed, devices, options))
    status = RunFolder(killed).status()
    assert status is not None  # It has finished.
    return Outcome(counts, status.attempt, mismatches(whole, killed))


def finish(process: subprocess.Popen[bytes]) -> None:
    """Waits for a run's end. Raises FaultError if its exit status is not 0."""
    if process.wait():
        raise FaultError(f"Expected exit status 0, got {process.returncode}: {process.args!r}.")


def mismatches(one: AnyPath, other: AnyPath) -> list[str]:
    """Differences of two finished runs: arrays bit for bit, and records except for the speed."""
    states = [Checkpoints(RunFolder(path).checkpoints).restore() for path in (one, other)]
    one_has, other_has = (dict(jax.tree_util.tree_leaves_with_path(state)) for state in states)
    differing = [
        jax.tree_util.keystr(path)
        for path in one_has.keys() | other_has.keys()
        if not _same(one_has.get(path), other_has.get(path))
    ]
    records = [[_timeless(r) for r in RunFolder(path).metrics()] for path in (one, other)]
    pairs = itertools.zip_longest(*records)
    return differing + [f"record {i}" for i, (a, b) in enumerate(pairs) if a != b]


def _same(one: Any, other: Any) -> bool:
    return np.array_equal(one, other, equal_nan=True)


def _timeless(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name != "images_per_second"}


def _wait_for(sign: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    while process.poll() is None and not sign():
        time.sleep(0.0005)


def _at_start(folder: Path, process: subprocess.Popen[bytes], rng: random.Random) -> None:
    time.sleep(rng.uniform(0, 3))


def _in_compilation(folder: Path, process: subprocess.Popen[bytes], rng: random.Random) -> None:
    before = RunFolder(folder).status()
    _wait_for(lambda: RunFolder(folder).status() != before, process)
    time.sleep(rng.uniform(0, 1))


def _in_training(folder: Path, process: subprocess.Popen[bytes], rng: random.Random) -> None:
    count = len(RunFolder(folder).metrics()) + rng.randrange(1, 12)
    _wait_for(lambda: len(RunFolder(folder).metrics()) >= count, process)
    time.sleep(rng.uniform(0, 0.05))


def _in_a_save(folder: Path, process: subprocess.Popen[bytes], rng: random.Random) -> None:
    def parts() -> set[Path]:
        return set((folder / "checkpoints").glob(".*"))

    left = parts()  # An earlier kill may have left some; they are deleted at the start.
    _wait_for(lambda: bool(parts() - left), process)
    time.sleep(rng.uniform(0, 0.06))


def _in_an_evaluation(folder: Path, process: subprocess.Popen[bytes], rng: random.Random) -> None:
    def begun() -> bool:
        records = RunFolder(folder).metrics()
        return len(records) > count and records[-1]["step"] % 60 == 0 and "lr" in records[-1]

    count = len(RunFolder(folder).metrics())
    _wait_for(begun, process)
    time.sleep(rng.uniform(0, 0.03))


MOMENTS: dict[str, Callable[[Path, subprocess.Popen[bytes], random.Random], None]] = {
    "compile": _in_compilation,
    "train": _in_training,
    "save": _in_a_save,
    "evaluate": _in_an_evaluation,
    "start": _at_start,
}


def main(args: flags.FlagValues) -> int:
    rng, wrong, folder = random.Random(args.seed), 0, filesystem.path(args.workdir)
    if not isinstance(folder, Path):
        raise UserError(f"Expected a folder on a disk, where saves can be watched, got {folder}.")
    print(f"| net | devices | backend | {' | '.join(MOMENTS)} | resumes | mismatches |")
    print("|---" * (5 + len(MOMENTS)) + "|")
    for backend, devices, net in itertools.product(
        ("pmap", "shard_map"), (1, 4), ("plain8", "resnet8")
    ):
        workdir = folder / f"{net}-{devices}-{backend}"
        options = [f"--config.parallel={backend}"]
        outcome = soak(net, workdir, devices, options, args.kills, rng)
        kills = " | ".join(str(outcome.kills[name]) for name in MOMENTS)
        resumes, differing = outcome.attempts - 1, len(outcome.mismatches)
        print(f"| {net} | {devices} | {backend} | {kills} | {resumes} | {differing} |", flush=True)
        wrong += differing
    return cli.FAILURE if wrong else 0


if __name__ == "__main__":
    flags.DEFINE_integer(
        "kills", 5, "How often each run is killed, at each moment in turn.", lower_bound=1
    )
    flags.DEFINE_integer("seed", 0, "The seed of the random moments.")
    cli.run(main, config="none", workdir="The folder for the runs; older runs in it are deleted.")
