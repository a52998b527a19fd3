"""The first ten minutes on a GPU or TPU: checks it, measures it, and trains a sweep on it.

.venv/bin/python -m experiments.accelerator --config=configs/degradation.py:cifar10 \
    --workdir=runs/accelerator --minutes=9

All that it learns is in the folder as soon as it is known. The same command goes on from there, on
another machine too, if the folder was copied. Checks and measurements take a third of the time, and
three minutes at most. What is known of a kind of device is not measured again.
"""

import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags

from experiments import cli
from experiments.benchmark import ACCELERATOR
from experiments.benchmarks import agreement, sharing
from experiments.sweeping import devices, grid
from resnet_flax.data import sources
from resnet_flax.errors import ExplainedError, FaultError, UserError
from resnet_flax.runtime import interrupt
from resnet_flax.storage import filesystem

PREPARATION = 180.0  # Seconds at most before training.
_OPENING = 120.0  # Seconds at most until jax has opened the devices.
_SAVING = 20.0  # Seconds before the end in which runs save and the report is written.
_REPORT = 5.0  # Of these, for the report.
_RECORD = "first_minutes.json"
_LARGEST = 2**20


class Finding(NamedTuple):
    """What was checked or measured, and whether it needs no second try."""

    result: Any
    is_final: bool


class Record:
    """What was checked and measured, by kind of device, in a file that is always whole."""

    def __init__(self, path: Path, device: str):
        self._path, self._device = path, device
        known = filesystem.read_json(path, _LARGEST) if path.exists() else {}
        if not isinstance(known, dict) or not all(isinstance(of, dict) for of in known.values()):
            raise UserError(f"Expected what this command wrote in {path}, got other JSON. Move it.")
        self._known: dict[str, dict[str, Any]] = known

    def once(self, name: str, measure: Callable[[], Finding]) -> Any:
        """The result of `measure`, from the file if a final one is there.

        None if it could not measure. A result that is not final is in the file as "NAME, not final"
        until the next try.
        """
        known = self._known.setdefault(self._device, {})
        result = known.get(name)
        if name not in known:
            try:
                result, is_final = measure()
            except ExplainedError as error:
                print(f"{name}: {error}", flush=True)
                return None
            known.pop(f"{name}, not final", None)
            known[name if is_final else f"{name}, not final"] = result
            filesystem.write_json(self._path, self._known)
        print(f"{name}: {json.dumps(result)}", flush=True)
        return result


def device(seconds: float) -> dict[str, Any]:
    """The platform, kind and number of this machine's devices, found by a process of its own.

    `chips`: of a TPU, which may have two devices a chip; else the devices. Raises UserError if jax
    opens no device in so many seconds, or only the CPU that nobody asked for.
    """
    script = (
        "import json, jax; d = jax.devices(); "
        "chips = {str(getattr(each, 'coords', each.id)) for each in d}; "
        "print(json.dumps([d[0].platform, d[0].device_kind, len(d), len(chips)]))"
    )
    command = [sys.executable, "-c", script]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired as error:
        raise UserError(
            f"jax opened no device in {seconds:.0f} s. The hosts of a TPU slice open theirs"
            " together: there, train with `launch --target=tpu-vm` or, on every host, `sweep`."
            " Elsewhere, try `nvidia-smi`, and this command again."
        ) from error
    if done.returncode:
        raise UserError(f"jax opens no device: {done.stderr.strip().splitlines()[-1]}")
    names = "platform", "kind", "count", "chips"
    found = dict(zip(names, json.loads(done.stdout.splitlines()[-1]), strict=True))
    if found["platform"] == "cpu" and os.environ.get("JAX_PLATFORMS", "").split(",")[0] != "cpu":
        reason = done.stderr.strip().rpartition("\n")[2].rstrip(".")
        raise UserError(
            f"jax finds no GPU or TPU, only the CPU{reason and f', and says: {reason}'}."
            " `make accelerator PLUGIN=cuda13` (cuda12 for an older driver, or tpu) installs a"
            " plug-in. To try this command on the CPU, set JAX_PLATFORMS=cpu."
        )
    return found


def prepare(
    args: flags.FlagValues, found: dict[str, Any], folder: Path, end: float
) -> tuple[bool, int]:
    """Checks and measures until `end`. Returns whether all is well, and how many runs share."""
    record = Record(folder / _RECORD, "{count} x {kind}, {platform}".format(**found))

    def left() -> float:
        return end - time.monotonic()

    def agrees() -> Finding:
        with tempfile.TemporaryDirectory() as scratch:
            checked = agreement.check(Path(scratch), left(), found["platform"], found["count"])
        return Finding(checked, is_final=_is_well(checked))  # The cause of a failure may be mended.

    is_well = _is_well(record.once("check", agrees) or {})
    at_once = args.at_once
    if not at_once and found["platform"] == "gpu":  # A TPU chip has one process. A CPU is full.
        dtype = args.config.run.model.dtype
        fields = json.dumps({"depth": 20, "dtype": dtype})
        command = ["experiments.benchmarks.sharing", fields]
        rows = record.once("sharing", lambda: rows_of(command, left()))
        at_once = sharing.best(rows) if rows else 1
    for net in ACCELERATOR:  # One by one, so that one is final where all take too long.
        measure = functools.partial(benchmark, args, folder / "benchmarks", net, end)
        record.once(f"benchmark, {net}", measure)
    return is_well, max(at_once, 1)


def _is_well(checked: Mapping[str, Any]) -> bool:
    names = "agrees", "resumed_from_step", "resumes_in_the_same_bits"
    return all(checked.get(name) for name in names)


def benchmark(args: flags.FlagValues, folder: Path, net: str, end: float) -> Finding:
    """The rows of a network in the suite for accelerators that are measured until `end`."""
    command = ["experiments.benchmark", "--suite=accelerator", f"--net={net}", "--rounds=3"]
    command.append(f"--workdir={folder / net.lower().replace(' ', '_')}")
    if Path(args.torch_python).exists():
        command += ["--against=torch", f"--torch_python={args.torch_python}"]
    return rows_of(command, end - time.monotonic())


def rows_of(command: Sequence[str], seconds: float) -> Finding:
    """The rows that a module prints in this time, as JSON. They are final if it ended by itself.

    Raises FaultError if there are none.
    """
    with tempfile.TemporaryFile("w+") as output:
        started: list[subprocess.Popen[str]] = []
        try:
            with interrupt.held():
                # In a session of its own: it may start others, which end with it.
                started.append(
                    subprocess.Popen(
                        [sys.executable, "-m", *command],
                        stdout=output,
                        text=True,
                        start_new_session=True,
                    )
                )
            _wait(started, time.monotonic() + seconds)
            status = started[0].poll()
        finally:
            for process in started:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        output.seek(0)
        lines = [line for line in output.read().splitlines() if line.startswith("{")]
    if not lines:
        why = f"the process ended with status {status}." if status else "the time was too short."
        raise FaultError(f"nothing was measured: {why}")
    return Finding([json.loads(line) for line in lines], status == 0)


@contextmanager
def group(
    commands: Sequence[Sequence[str]], environments: Sequence[Mapping[str, str]]
) -> Iterator[list["subprocess.Popen[bytes]"]]:
    """Processes that end with the context: first they are told to stop, so that they save."""
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for command, environment in zip(commands, environments, strict=True):
            with interrupt.held():
                processes.append(subprocess.Popen(command, env=environment))
        yield processes
    finally:
        for process in processes:
            process.send_signal(signal.SIGTERM)
        try:  # A second signal ends the wait.
            _wait(processes, time.monotonic() + _SAVING - _REPORT)
        finally:
            for process in processes:  # Such as one that compiles, and has nothing to save.
                process.kill()
                process.wait()


def _wait(processes: Iterable["subprocess.Popen[Any]"], end: float) -> None:
    """Returns when all processes have ended, or at `end`."""
    for process in processes:
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(end - time.monotonic(), 0.1))


def train(
    args: flags.FlagValues, runs: list[str], environments: Sequence[Mapping[str, str]], end: float
) -> int:
    """Trains the runs until `end`, one at a time in each environment. Returns the exit status."""
    command = [sys.executable, "-m", "experiments.sweep", *cli.config_as_given(args)]
    command += [f"--workdir={args.workdir}", "--num_processes=1"]
    count = len(environments)
    commands = [[*command, f"--only={','.join(runs[share::count])}"] for share in range(count)]
    with group(commands, environments) as processes:
        _wait(processes, end)
    statuses = {process.returncode for process in processes}
    if statuses == {0}:  # The last run wrote the report.
        return 0
    report = [sys.executable, "-m", "experiments.report", f"--workdir={args.workdir}"]
    subprocess.run(report, check=False)
    return worst(statuses)


def places(
    variables: Mapping[str, str], found: Mapping[str, Any], at_once: int
) -> list[dict[str, str]]:
    """The environment variables of each process that trains at a time: `at_once` on each device.

    A run has one GPU or TPU chip, so that BN sees as many images as in the paper or more.
    """
    if found["platform"] == "gpu":
        names = _names(variables.get("CUDA_VISIBLE_DEVICES", ""), found["count"])
        shared = devices.of_shared_gpu(variables, at_once)
        return [shared | {"CUDA_VISIBLE_DEVICES": name} for name in names] * at_once
    if found["platform"] == "tpu" and found["chips"] > 1:
        names = _names(variables.get("TPU_VISIBLE_CHIPS", ""), found["chips"])
        return [devices.of_tpu_chip(variables, name) for name in names]
    return [dict(variables)] * at_once


def _names(visible: str, count: int) -> list[str]:
    """The names of so many GPUs or chips: those that a variable lets this process see, or all."""
    given = visible.split(",")[:count]
    return given if any(given) else [str(i) for i in range(count)]


def worst(statuses: Iterable[int]) -> int:
    """The exit status for those of several processes. Below 0, a signal has killed the process."""
    return max(status if status >= 0 else cli.FAILURE for status in statuses)


def main(args: flags.FlagValues) -> int:
    start = time.monotonic()
    seconds = 60 * args.minutes
    folder = cli.sweep_folder(args)
    if not isinstance(folder, Path):
        raise UserError(f"Expected a folder on a disk, got {folder}. Copy it to a bucket later.")
    runs = _checked(args, folder)
    interrupt.end_on(*interrupt.SIGNALS)  # And the processes that it has started.
    found = device(min(_OPENING, seconds))
    if found["platform"] == "tpu" and args.at_once > 1:
        raise UserError(f"Expected --at_once of at most 1 for a TPU chip, got {args.at_once}.")
    folder.mkdir(parents=True, exist_ok=True)
    print(f"device: {json.dumps(found)}", flush=True)
    is_well, at_once = prepare(args, found, folder, start + min(PREPARATION, seconds / 3))
    environments = places(os.environ, found, at_once)[: len(runs)]
    after = time.monotonic() - start
    print(f"training after {after:.0f} s, {len(environments)} runs at a time", flush=True)
    status = train(args, runs, environments, start + seconds - _SAVING)
    if not is_well:
        print(f"The check failed or did not end: see above, and {folder / _RECORD}.")
        return cli.FAILURE
    return status


def _checked(args: flags.FlagValues, folder: Path) -> list[str]:
    """The names of the sweep's runs.

    Raises UserError if the sweep could not begin in this folder, before any minute is spent.
    """
    runs = grid.runs_of(cli.sweep_config(args))
    grid.check_recipe(runs, folder)
    for data in {run.config.data for run in runs}:
        for split in (data.train_split, data.test_split):
            sources.open_split(data.name, split, data.data_dir)
    return [run.name for run in runs]


if __name__ == "__main__":
    flags.DEFINE_float("minutes", 9, "Minutes that all of it may take.", lower_bound=0.1)
    flags.DEFINE_integer("at_once", 0, "Runs that share the device; 0: measured.", lower_bound=0)
    flags.DEFINE_string(
        "torch_python", ".venv-torch/bin/python", "A Python with PyTorch, if there is one."
    )
    cli.run(main, config="sweep", workdir="The folder for all results. It may come from elsewhere.")
