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
    """A case in a process of its own, which waits for commands to run."""

    def __init__(self, command: Sequence[str], case: dict[str, Any]):
        # Each process sets its own XLA flags. None may take all of a GPU's memory.
        environment = os.environ | {"XLA_FLAGS": "", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        self._process = subprocess.Popen(
            [*command, json.dumps(case)],
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

    Says on stderr what it does. A table of rows may go to stdout.
    """
    console = Console(stderr=True, highlight=False)
    with contextlib.ExitStack() as stack:
        workers = {}
        for i, (name, (command, case)) in enumerate(cases.items(), 1):
            console.print(f"builds {name} ({i} of {len(cases)})", markup=False)
            workers[name] = worker = Worker(command, case)
            stack.callback(worker.close)
        times: dict[str, list[float]] = {name: [] for name in workers}
        console.print(f"times {len(cases)} programs in {rounds} rounds")
        for _ in track(range(rounds), "rounds", console=console, transient=True):
            for name, worker in workers.items():
                times[name].append(worker.run())
        return [{"program": n, **w.built, **spread(times[n])} for n, w in workers.items()]


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
