"""Writes the job files with which a scheduler runs a sweep, one job for each run; submits them.

.venv/bin/python -m experiments.launch --target=slurm --config=configs/degradation.py:digits \
  --workdir=runs/digits --devices_per_run=2 --submit
"""

import functools
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from absl import flags
from ml_collections import config_flags

from configs import machines
from experiments import cli
from experiments.schedulers import jobs, notes
from experiments.sweeping import grid
from experiments.sweeping.machine import MachineConfig, run_seconds
from resnet_flax.config import parse
from resnet_flax.errors import FaultError, UserError
from resnet_flax.runtime import parallel
from resnet_flax.storage import filesystem


class Target(NamedTuple):
    """How a scheduler's files are made and submitted, and which flags it needs and takes.

    `submit`: the command that takes one file; `client`: the program that it needs.
    """

    files: Callable[..., jobs.Files]
    client: str
    submit: Sequence[str]
    needs: Sequence[str] = ()
    takes: Sequence[str] = ()


TARGETS = {
    "slurm": Target(
        functools.partial(jobs.slurm, python=sys.executable),
        client="sbatch",
        submit=["sbatch"],
        takes=["accelerator", "devices_per_run", "nodes_per_run", "at_once", "option", "machine"],
    ),
    "tpu-vm": Target(
        jobs.tpu_vm,
        client="gcloud",
        submit=["bash"],
        needs=["accelerator", "zone"],
        takes=["runtime_version", "spot"],
    ),
    "gke": Target(
        jobs.gke,
        client="kubectl",
        submit=["kubectl", "apply", "--filename"],
        needs=["accelerator", "image"],
        takes=[
            "topology",
            "devices_per_run",
            "nodes_per_run",
            "queue",
            "service_account",
            "spot",
        ],
    ),
    "skypilot": Target(
        jobs.skypilot,
        client="sky",
        submit=["sky", "jobs", "launch", "--yes", "--detach-run"],
        needs=["accelerator"],
        takes=["devices_per_run", "nodes_per_run", "spot"],
    ),
}
NO_LIMIT = (
    "The job has no time limit of its own: how long a run takes there is not known. Give"
    " --option=--time=HH:MM:SS, or --machine=configs/machines.py:NAME, as for plan."
)
NO_ACCOUNT = (
    "The pods act as the namespace's default account. It must be able to write to {workdir}."
    " --service_account names another one."
)
OF_RESOURCES = ("accelerator", "devices_per_run", "nodes_per_run", "spot")
OF_PLAN = ("machine",)
OF_SLICES = ("tpu-vm", "skypilot")  # Their accelerator may be a slice of TPU VMs.
# The machine may be slower, or busy. A run that reaches its limit is queued again and continues.
SPARE = 4
SHORTEST, LONGEST = 30, 24 * 60  # Minutes of a limit.


def main(args: flags.FlagValues) -> int:
    target = TARGETS[args.target]
    _check_flags(args, target)
    if args.submit and shutil.which(target.client) is None:
        raise UserError(
            f"Expected {target.client} for --submit, but it is not installed here. Leave --submit"
            " out: the files are then written, with the command that submits them."
        )
    runs = _expand(args)
    sweep = jobs.Sweep(
        flags=cli.config_as_given(args),
        runs=[run.name for run in runs],
        workdir=args.workdir,
        here=Path.cwd(),
        output=_output(args),
    )
    minutes = time_limit(runs, args) if "machine" in target.takes else None
    asked = jobs.Resources._make([*(args[name].value for name in OF_RESOURCES), minutes])
    options = {*target.needs, *target.takes} - {*OF_RESOURCES, *OF_PLAN}
    files = target.files(sweep, asked, **{name: args[name].value for name in options})
    paths = _write(files, sweep.output)
    config_file = cli.config_file(args)
    said = notes.of(args.target, args.workdir, runs, _devices_per_run(args), config_file)
    has_limit = minutes or any(re.match(r"--time=|-t", each) for each in args.option or ())
    if "machine" in target.takes and not has_limit:
        said.append(NO_LIMIT)
    if args.target == "gke" and "://" in args.workdir and not args.service_account:
        said.append(NO_ACCOUNT.format(workdir=args.workdir))
    for note in said:
        print(note, file=sys.stderr)
    if args.submit:
        return _submit(target, paths)
    print(f"To submit each file, add --submit. It runs: {' '.join(target.submit)} FILE")
    return 0


def time_limit(runs: Sequence[grid.GridRun], args: flags.FlagValues) -> int | None:
    """Minutes for the longest run, with time to spare; None if its speed is not known.

    By --machine, as `plan` computes it. Without an accelerator, by two CPU cores that we measured.
    """
    given = args.machine or (None if args.accelerator else machines.get_config("cpu_2_cores"))
    if not given:
        return None
    machine = parse(given.to_dict(), MachineConfig, "machine")
    chips = args.devices_per_run if args.accelerator else 1
    try:
        for run in runs:
            _check_measured(machine, run.config.data.name)
        seconds = max(run_seconds(runs, machine, chips))
    except UserError:
        if args.machine:
            raise
        return None  # Of this data set, nothing was measured.
    return min(max(math.ceil(SPARE * seconds / 60), SHORTEST), LONGEST)


def _check_measured(machine: MachineConfig, data: str) -> None:
    """Raises UserError if nothing was measured. `plan` then goes by the peak: too short a limit."""
    speed = machine.speed.get(data)
    if speed is not None and speed.images_per_second is None:
        raise UserError(
            f"The speed of {machine.name} on {data} is not known, so neither is a time limit. Give"
            f" --machine.speed.{data}.images_per_second=N and .multiply_adds=M of one network, or"
            " leave --machine out."
        )


def _check_flags(args: flags.FlagValues, target: Target) -> None:
    """Raises UserError if this scheduler needs a flag that is missing, or does not take one."""
    accepted = [*target.needs, *target.takes]
    taken = f"--target={args.target}, which takes {', '.join(f'--{name}' for name in accepted)}"
    for name in target.needs:
        if not args[name].value:
            raise UserError(f"Expected --{name} for {taken}.")
    for name in (name for each in TARGETS.values() for name in (*each.needs, *each.takes)):
        if name not in accepted and args[name].present:
            raise UserError(f"Expected no --{name} for {taken}.")
    if args.devices_per_run % args.nodes_per_run:
        raise UserError(
            "Expected --devices_per_run to be a multiple of --nodes_per_run, got"
            f" {args.devices_per_run} and {args.nodes_per_run}."
        )


def _expand(args: flags.FlagValues) -> list[grid.GridRun]:
    """The runs of the grid. Raises UserError if it is not valid, or the batch not divisible."""
    runs = grid.runs_of(cli.sweep_config(args))
    for run in runs:
        with grid.named(run.name):
            batch_size = run.config.data.batch_size
            parallel.check_divisible(batch_size, _devices_per_run(args))
    return runs


def _devices_per_run(args: flags.FlagValues) -> int:
    """The devices that a run will have. All runs of a slice of TPU VMs have all of its devices."""
    whole = jobs.devices_of_slice(args.accelerator) if args.target in OF_SLICES else None
    return whole or int(args.devices_per_run)


def _output(args: flags.FlagValues) -> Path:
    """The folder of --output; by default one in the workdir, or in runs/ if that is in a bucket."""
    if args.output:
        return Path(args.output).expanduser().absolute()
    workdir = args.workdir
    local = Path("runs").absolute() / Path(workdir).name if "://" in workdir else Path(workdir)
    return local / "launch" / args.target


def _write(files: jobs.Files, output: Path) -> list[Path]:
    paths = [output / name for name in files]
    try:
        output.mkdir(parents=True, exist_ok=True)
        for path, text in zip(paths, files.values(), strict=True):
            filesystem.write_text(path, text)
            print(path)
    except OSError as error:
        raise UserError(
            f"Cannot write to {output}: {error.strerror}. Choose another folder with --output."
        ) from error
    return paths


def _submit(target: Target, paths: Sequence[Path]) -> int:
    """Submits the files one after another. Returns the exit status.

    Raises FaultError with the client's message if it refuses a file.
    """
    for path in paths:
        command = [*target.submit, str(path)]
        sys.stdout.flush()  # So that our lines come before those of the client.
        if target.submit[0] == "bash":  # The script takes over this process and gets its signals.
            os.execvp("bash", command)
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            raise FaultError(f"{target.client} refused {path}: {' '.join(done.stderr.split())}")
    return 0


if __name__ == "__main__":
    flags.DEFINE_enum("target", None, list(TARGETS), "The scheduler.", required=True)
    flags.DEFINE_bool("submit", False, "Also submits the files to the scheduler.")
    flags.DEFINE_string(
        "output", None, "The folder of the job files; by default launch/TARGET in the workdir."
    )
    flags.DEFINE_string(
        "accelerator", "", "A type, in the scheduler's words. Without it, Slurm uses CPU cores."
    )
    flags.DEFINE_integer(
        "devices_per_run", 1, "Devices of a run, on all its nodes together.", lower_bound=1
    )
    flags.DEFINE_integer("nodes_per_run", 1, "Nodes that train a run together.", lower_bound=1)
    flags.DEFINE_bool("spot", False, "Use cheap machines that may be taken away.")
    flags.DEFINE_integer("at_once", None, "Slurm: how many runs at a time.", lower_bound=1)
    flags.DEFINE_multi_string(
        "option", [], "Slurm: an option for sbatch, such as --option=--partition=gpu."
    )
    flags.DEFINE_string("zone", None, "TPU VM: the zone of the slice.")
    flags.DEFINE_string(
        "runtime_version", None, "TPU VM: its software version; by default the usual one."
    )
    flags.DEFINE_string(
        "image", None, "GKE: an image with this checkout and a `python` that can run it."
    )
    flags.DEFINE_string("topology", None, "GKE: the topology of a TPU slice, such as 4x4.")
    flags.DEFINE_string("queue", None, "GKE: a local queue of Kueue.")
    flags.DEFINE_string(
        "service_account", None, "GKE: the account that the bucket admits, in Kubernetes."
    )
    config_flags.DEFINE_config_file(
        "machine", help_string="Slurm: FILE.py:NAME, as for plan, which gives the time limit."
    )
    cli.run(main, config="sweep", workdir="The sweep's folder, by the name that its runs use.")
