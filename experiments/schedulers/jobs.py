"""Fills in the templates of a sweep's job files, for schedulers that run it elsewhere."""

import hashlib
import json
import math
import re
import shlex
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from resnet_flax.errors import UserError

# A job's name and its suffix form a host's name, which has at most 63 characters.
JOB_NAME = r"[a-z][a-z0-9-]*"
LONGEST = 45
COORDINATOR_PORT = 8476
# Chips of a node of a TPU slice on GKE: of a slice of several nodes, and of one node.
CHIPS_A_NODE = 4
CHIPS_OF_ONE_NODE = 8
# Control characters, halves of surrogate pairs, and other characters that end a line in YAML.
UNWRITABLE = ("Cc", "Cs", "Zl", "Zp")
# Beginning of an accelerator's type -> software version of a TPU VM.
RUNTIMES = {
    "v5litepod": "v2-alpha-tpuv5-lite",
    "v5p": "v2-alpha-tpuv5",
    "v6e": "v2-alpha-tpuv6e",
    "": "tpu-ubuntu2204-base",
}
# A TPU slice's type counts cores. In these generations, jax sees the two of a chip as one device.
TWO_CORES_A_DEVICE = ("v4", "v5p")
Files = Mapping[str, str]
"""Name -> content."""


class Sweep(NamedTuple):
    """A sweep to run.

    - `flags`: --config and its overrides.
    - `runs`: the names of the runs.
    - `here`: the checkout; `output`: the folder of the job files.
    """

    flags: Sequence[str]
    runs: Sequence[str]
    workdir: str
    here: Path
    output: Path

    @property
    def name(self) -> str:
        return Path(self.workdir).name

    def command(self, python: str, *more: str) -> list[str]:
        flags = [*self.flags, f"--workdir={self.workdir}", *more]
        return [python, "-m", "experiments.sweep", *flags]


class Resources(NamedTuple):
    """Resources of each run, in the scheduler's words. Without an accelerator: CPU cores.

    `minutes`: the time limit. None: the scheduler's own.
    """

    accelerator: str
    devices: int
    nodes: int
    spot: bool
    minutes: int | None = None

    @property
    def devices_per_node(self) -> int:
        return self.devices // self.nodes

    @property
    def gibibytes(self) -> int:
        """The memory of a node. A run on two CPU cores was seen to take 2.2."""
        return self.devices_per_node * (16 if self.accelerator else 4)

    @property
    def cpus(self) -> int:
        """The CPU cores of a node: four for each accelerator, which read and cut its images."""
        return self.devices_per_node * (4 if self.accelerator else 1)


def devices_of_slice(accelerator: str) -> int | None:
    """The devices of a slice of TPU VMs, such as v5litepod-16 or tpu-v4-8. None for other types."""
    match = re.fullmatch(r"(?:tpu-)?(v\d+[a-z]*)-(\d+)", accelerator)
    if match is None:
        return None
    return max(int(match[2]) // (2 if match[1] in TWO_CORES_A_DEVICE else 1), 1)


def slurm(
    sweep: Sweep, resources: Resources, *, python: str, at_once: int | None, option: Sequence[str]
) -> Files:
    """One batch script for an array, in which each element is a run.

    Raises UserError for a path with a backslash, which sbatch cannot open, and for an `option` that
    is not one.
    """
    for path in map(str, (sweep.here, sweep.output)):
        if "\\" in path:
            raise UserError(f"Expected paths without a backslash for sbatch, got {path}.")
    for each in option:
        if not each.startswith("-"):
            raise UserError(f"Expected --option=--NAME=VALUE, in sbatch's words, got {each}.")
    more = {"command": shlex.join(sweep.command(python)), "at_once": at_once, "options": option}
    return {"sweep.sbatch": _render("slurm.sbatch", sweep, resources, **more)}


def tpu_vm(sweep: Sweep, resources: Resources, *, zone: str, runtime_version: str | None) -> Files:
    """One script that asks for a slice and runs the sweep on it."""
    starts = resources.accelerator.startswith
    booted = next(version for start, version in RUNTIMES.items() if starts(start))
    more = {
        "command": shlex.join(sweep.command(".venv/bin/python")),
        "extra": "tpu",
        "job_name": _job_name(sweep.name),
        "runtime_version": runtime_version or booted,
        "zone": zone,
    }
    return {"sweep.sh": _render("tpu-vm.sh", sweep, resources, **more)}


def gke(
    sweep: Sweep,
    resources: Resources,
    *,
    image: str,
    topology: str | None,
    queue: str | None,
    service_account: str | None = None,
) -> Files:
    """One JobSet for each run.

    `service_account`: the account of Kubernetes that its pods act as, and that a bucket admits.

    Raises UserError if a TPU has no topology, another number of chips than a run has devices, or
    more chips a node than there are.
    """
    if resources.accelerator.startswith("tpu") != bool(topology):
        raise UserError(
            "Expected --topology, such as 4x4, with a TPU as --accelerator and only with a TPU, got"
            f" {topology} with {resources.accelerator}."
        )
    chips = math.prod(map(int, re.findall(r"\d+", topology or "")))
    if topology and chips != resources.devices:
        raise UserError(
            f"Expected --devices_per_run={chips} for --topology={topology}, got"
            f" {resources.devices}."
        )
    most = CHIPS_OF_ONE_NODE if resources.nodes == 1 else CHIPS_A_NODE
    if topology and resources.devices_per_node > most:
        raise UserError(
            f"Expected at most {CHIPS_A_NODE} chips a node of --topology={topology}, got"
            f" {resources.devices_per_node}; give --nodes_per_run={chips // CHIPS_A_NODE}."
        )
    more = {"image": image, "topology": topology, "queue": queue}
    more |= {"service_account": service_account}
    files = {}
    for run in sweep.runs:
        name = _job_name(f"{sweep.name}-{run}")
        # Kubernetes replaces $(NAME) by a variable, and $$ by $.
        command = [word.replace("$", "$$") for word in sweep.command("python", f"--only={run}")]
        command += _peers(f"{name}-hosts-0-0.{name}", resources.nodes, "$(JOB_COMPLETION_INDEX)")
        of_run = {"run": run, "job_name": name, "command": command}
        files[f"{run}.yaml"] = _render("gke.yaml", sweep, resources, **more, **of_run)
    return files


def skypilot(sweep: Sweep, resources: Resources) -> Files:
    """One managed job for each run."""
    first = '"$(head -n 1 <<< "$SKYPILOT_NODE_IPS")"'
    peers = _peers(first, resources.nodes, '"$SKYPILOT_NODE_RANK"')
    extra = "tpu" if resources.accelerator.startswith("tpu") else "cuda"
    if extra == "tpu" and resources.nodes == 1:  # A slice may have several hosts: jax finds them.
        peers = []
    files = {}
    for run in sweep.runs:
        command = shlex.join(sweep.command(".venv/bin/python", f"--only={run}"))
        of_run = {
            "run": run,
            "job_name": _job_name(f"{sweep.name}-{run}"),
            "command": " ".join([command, *peers]),
        }
        files[f"{run}.yaml"] = _render("skypilot.yaml", sweep, resources, extra=extra, **of_run)
    return files


def _peers(first: str, nodes: int, rank: str) -> list[str]:
    """The flags with which the processes of a run find each other; one process a node."""
    if nodes == 1:
        return ["--num_processes=1"]  # So that jax looks for no other processes.
    coordinator = f"--coordinator={first}:{COORDINATOR_PORT}"
    return [coordinator, f"--num_processes={nodes}", f"--process_id={rank}"]


def _job_name(name: str) -> str:
    """Makes a unique name that a host can have. Raises UserError if that is not possible."""
    job_name = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    if job_name != name or len(name) > LONGEST:  # Another name may give the same one.
        suffix = f"-{hashlib.sha256(name.encode()).hexdigest()[:6]}"
        job_name = job_name[: LONGEST - len(suffix)].rstrip("-") + suffix
    if not re.fullmatch(JOB_NAME, job_name):
        raise UserError(
            f"Expected a job's name that begins with a letter, got {job_name}; choose another last"
            " part of --workdir."
        )
    return job_name


def _check_writable(values: Iterable[Any]) -> None:
    """Raises UserError for text that would break a line of a job file."""
    for value in values:
        if isinstance(value, str | Path):
            if any(unicodedata.category(char) in UNWRITABLE for char in str(value)):
                raise UserError(f"Expected text of one line for job files, got {str(value)!r}.")
        elif isinstance(value, Iterable):
            _check_writable(value)


def _render(template: str, sweep: Sweep, resources: Resources, **more: Any) -> str:
    _check_writable((sweep, resources, more.values()))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "quote": lambda value: shlex.quote(str(value)),
        "json": json.dumps,
        # Slurm replaces %j and the like in a path, and %% by %.
        "literal": lambda path: str(path).replace("%", "%%"),
    }
    return environment.get_template(f"{template}.j2").render(
        sweep=sweep, resources=resources, **more
    )
