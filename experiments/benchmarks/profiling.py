"""Where a training step spends its time on a CPU, by operation and stage, and the least it needs.

Two limits are measured: the FLOPs a second of one core in a matrix product, and the bytes a second
that all cores together copy. What fits a cache can be faster than the second.

`measure` starts it as a program. It takes a case of `worker.py` as JSON and the number of rounds,
and prints rows as JSON.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.benchmarks import worker
from experiments.benchmarks.worker import Case
from experiments.compiling import hlo
from resnet_flax.models import cost
from resnet_flax.runtime import cpu

FORWARD = "convolution, forward"
GRADIENTS = ("convolution, input gradient", "convolution, weight gradient")
WAITING = "all-reduce, and waiting for it"
# XLA runs a convolution that it does not fuse on other threads. The profile shows its start alone.
HIDDEN = "waiting, and unfused convolutions"
# The first pattern that fits the source of an instruction says what it is. XLA fuses operations:
# a fusion counts as its last one.
OPERATIONS = {
    r"kernel_gradient/conv_general_dilated": GRADIENTS[1],
    r"transpose\(.*/conv\d?/conv_general_dilated": GRADIENTS[0],
    r"/conv\d?/conv_general_dilated": FORWARD,
    r"/conv\d?/": "convolution, copies to another layout",
    r"transpose\(.*/bn\d?/": "BN, backward",
    r"/bn\d?/": "BN, forward",
    r"transpose\(.*/relu": "ReLU, backward",
    r"/relu": "ReLU, forward",
    r"shortcut": "shortcut and addition",
    r"global_average_pool|/fc/|jvp\(\)": "head and loss",
    r"vmap|cond/|image_keys|gather": "images and augmentation",
    r"psum": WAITING,
}
OTHER = "optimiser, and what is left"
Row = dict[str, Any]


def operation_of(source: str) -> tuple[str, str]:
    """The operation and the stage of an instruction, by where it comes from in the program."""
    found = (what for pattern, what in OPERATIONS.items() if re.search(pattern, source))
    what, stage = next(found, OTHER), re.search(r"stage\d", source)
    return what, stage[0] if stage else "stem" if re.search(r"/(conv|bn|relu)/", source) else ""


def measured(run: Callable[[], object]) -> tuple[dict[str, float], float]:
    """Seconds of each instruction on all devices together, and of the whole, of one `run`."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            start = time.perf_counter()
            run()
            whole = time.perf_counter() - start
        (file,) = Path(folder).rglob("*.xplane.pb")
        profile = jax.profiler.ProfileData.from_file(str(file))
        seconds: dict[str, float] = defaultdict(float)
        for plane in profile.planes:
            for line in plane.lines:
                for event in line.events:
                    if name := dict(event.stats).get("hlo_op"):
                        seconds[str(name)] += event.duration_ns / 1e9
    return seconds, whole


def flops_a_second() -> float:
    """Of one core, in a product of matrices that fit its cache. The best of several.

    NumPy takes one core if OPENBLAS_NUM_THREADS=1 is set when it is imported.
    """
    side, times = 512, 500
    a = np.ones((side, side), np.float32)
    out = np.empty_like(a)
    return max(2 * side**3 / _seconds(lambda: np.matmul(a, a, out=out)) for _ in range(times))


def bytes_a_second(cores: int) -> float:
    """Of all cores together, read and written, in copies that fit no cache. The best of several."""
    size, times = 2**26, 30
    pairs = [(np.ones(size, np.uint8), np.empty(size, np.uint8)) for _ in range(cores)]

    def copy() -> None:
        list(pool.map(lambda pair: np.copyto(pair[1], pair[0]), pairs))

    with ThreadPoolExecutor(cores) as pool:
        return max(2 * size * cores / _seconds(copy) for _ in range(times))


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def least_seconds(
    built: worker.Built, case: Case, peak: float, bandwidth: float
) -> dict[tuple[str, str], float]:
    """The least time of each operation, of one step on one device: by FLOPs or by bytes.

    `peak`, `bandwidth`: FLOPs and bytes a second of one device.
    """
    devices = built.costs["devices"]
    flops: dict[tuple[str, str], float] = defaultdict(float)
    parts = cost.layer_table(built.model, (case.size, case.size, case.channels))
    for part in parts:
        if re.search(r"conv\d?$", part.name):
            stage = part.name[:6] if part.name.startswith("stage") else "stem"
            for what in (FORWARD, *GRADIENTS):
                flops[what, stage] += 2 * part.multiply_adds * case.batch_size / devices
    program = hlo.Program(built.text)
    moved: dict[tuple[str, str], float] = defaultdict(float)
    for run in program.runs():
        each = program.moved(run) * run.times / case.steps_per_dispatch
        moved[operation_of(run.instruction.source)] += each
    return {key: max(flops[key] / peak, moved[key] / bandwidth) for key in moved}


def profile(case: Case, rounds: int) -> list[Row]:
    """Rows of a case: medians of `rounds` runs, a step and a device."""
    built = worker.build(case)
    program = hlo.Program(built.text)
    sources = {
        run.instruction.name: run.instruction.source
        for run in program.runs()
        if run.instruction.opcode not in ("while", "convolution")
    }
    scale = 1000 / case.steps_per_dispatch / built.costs["devices"]
    times: dict[tuple[str, str], list[float]] = defaultdict(list)
    for _ in range(rounds):
        seconds, whole = measured(built.run)
        spent: dict[tuple[str, str], float] = defaultdict(float)
        for name, value in seconds.items():
            if name in sources:
                spent[operation_of(sources[name])] += value * scale
        spent[HIDDEN, ""] = whole * 1000 / case.steps_per_dispatch - sum(spent.values())
        for key, value in spent.items():
            times[key].append(value)
    devices = built.costs["devices"]
    peak, bandwidth = flops_a_second(), bytes_a_second(devices)
    least = least_seconds(built, case, peak, bandwidth / devices)
    least[HIDDEN, ""] = sum(value for key, value in least.items() if key not in times)
    medians = {key: float(np.median(found)) for key, found in times.items()}
    limits = {"gflop_s_of_a_core": peak / 1e9, "gb_s_of_all_cores": bandwidth / 1e9}
    rows = [
        {
            "operation": what,
            "stage": stage,
            "ms": ms,
            "share": ms / sum(medians.values()),
            "least_ms": 1000 * least.get((what, stage), 0.0),
            "runs": rounds,
            **limits,
        }
        for (what, stage), ms in medians.items()
    ]
    return sorted(rows, key=lambda row: -row["ms"])


def measure(shapes: Mapping[str, Mapping[str, Any]], rounds: int) -> Iterator[Row]:
    """Profiles our program for each shape, in a process of its own."""
    for shape, fields in shapes.items():
        case = json.dumps(Case(**fields)._asdict())
        found = subprocess.run(
            [sys.executable, "-m", "experiments.benchmarks.profiling", case, str(rounds)],
            check=True,
            stdout=subprocess.PIPE,
            env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "OPENBLAS_NUM_THREADS": "1"},
        )
        yield from ({"shape": shape, **row} for row in json.loads(found.stdout))


if __name__ == "__main__":
    cpu.keep_barriers()
    own = Case(**json.loads(sys.argv[1]))
    cpu.use_cores(own.batch_size)
    print(json.dumps(profile(own, int(sys.argv[2]))))
