"""Times training programs in turn, each in a process of its own."""

import contextlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.progress import track

from experiments.benchmarks.worker import Case
from resnet_flax.errors import FaultError

Row = dict[str, Any]


class Worker:
    """A case in a process of its own, which waits for commands to run.

    `platform`: the one on which it must run; by default any. Raises FaultError if it cannot.
    """

    def __init__(self, command: Sequence[str], case: dict[str, Any], platform: str = ""):
        # Each process sets its own XLA flags. None may take all of a GPU's memory.
        environment = os.environ | {"XLA_FLAGS": "", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        self._process = subprocess.Popen(
            [*command, json.dumps(case), platform],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.built = json.loads(self._line())

    def _line(self) -> str:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            self.close()
            raise FaultError(f"A benchmark process ended with status {status}.")
        return line

    def run(self) -> float:
        """Runs a few steps. Returns milliseconds a step."""
        assert self._process.stdin
        self._process.stdin.write("run\n")
        self._process.stdin.flush()
        return float(self._line())

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()  # Also closes its pipes.


def alternate(cases: dict[str, tuple[Sequence[str], dict[str, Any]]], rounds: int) -> list[Row]:
    """Builds all cases, then times them in turn. Returns a row for each.

    All run on the platform of the first, if it names one. A later one that cannot, or that fails to
    build, is left out. A TPU has one process: there, each is timed when it is built.

    Says on stderr what it does. A table of rows may go to stdout.
    """
    console = Console(stderr=True, highlight=False)
    built: dict[str, Row] = {}
    times: dict[str, list[float]] = {}
    waiting: dict[str, Worker] = {}
    with contextlib.ExitStack() as stack:
        for i, (name, (command, case)) in enumerate(cases.items(), 1):
            console.print(f"builds {name} ({i} of {len(cases)})", markup=False)
            platform = next(iter(built.values())).get("platform", "") if built else ""
            try:
                worker = Worker(command, case, platform)
            except FaultError as error:
                if not built:
                    raise
                console.print(f"leaves {name} out: {error}", markup=False)
                continue
            stack.callback(worker.close)
            built[name], times[name] = worker.built, []
            if worker.built.get("platform") == "tpu":
                times[name] = [worker.run() for _ in range(rounds)]
                worker.close()
            else:
                waiting[name] = worker
        console.print(f"times {len(waiting)} programs in {rounds} rounds")
        for _ in track(range(rounds), "rounds", console=console, transient=True):
            for name, worker in waiting.items():
                times[name].append(worker.run())
    return [{"program": name, **costs, **spread(times[name])} for name, costs in built.items()]


def spread(values: list[float]) -> Row:
    """Median, minimum and maximum of step times in ms."""
    middle = statistics.median(values)
    return {"step_ms": middle, "min_ms": min(values), "max_ms": max(values), "runs": len(values)}


def ours(**fields: Any) -> tuple[Sequence[str], dict[str, Any]]:
    """A case of `worker.py`: its command and its fields."""
    return (sys.executable, "-m", "experiments.benchmarks.worker"), Case(**fields)._asdict()


def theirs(python: str, **fields: Any) -> tuple[Sequence[str], dict[str, Any]]:
    """A case of `pytorch.py`, in another Python: its command and its fields."""
    layout = {name: fields.pop(name) for name in ("channels_last", "compile")}
    return (python, "experiments/benchmarks/pytorch.py"), Case(**fields)._asdict() | layout
