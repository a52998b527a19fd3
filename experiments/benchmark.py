"""Measures step time, compile time, memory and start-up. Writes a table and JSON.

.venv/bin/python -m experiments.benchmark --suite=steps --against=torch --workdir=runs/benchmarks
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from absl import flags

from experiments import cli
from experiments.benchmarks import convolution, engine, input_pipeline, profiling
from experiments.benchmarks.turns import Row, Worker, alternate, ours, theirs
from experiments.benchmarks.worker import Case
from experiments.compiling import bound
from experiments.reporting import figures, markdown
from resnet_flax.errors import FaultError, UserError
from resnet_flax.models import cost
from resnet_flax.models.catalogue import build_resnet
from resnet_flax.runtime import environment
from resnet_flax.storage import filesystem
from resnet_flax.storage.run_folder import RunFolder

SHAPES: dict[str, dict[str, Any]] = {
    "depth 20, 32x32": {"depth": 20, "size": 32},
    "depth 56, 32x32": {"depth": 56, "size": 32},
    "depth 20, 28x28": {"depth": 20, "size": 28, "channels": 1},
    "depth 20, 8x8": {"depth": 20, "size": 8, "channels": 1, "steps_per_dispatch": 12},
}
OURS: dict[str, dict[str, Any]] = {
    "ours": {},
    "ours, one device": {"devices": 1},
    "ours, scanned blocks": {"scan": True},
    "ours, bfloat16": {"dtype": "bfloat16"},
    "plain Flax, one device": {"kind": "flax", "devices": 1, "steps_per_dispatch": 1},
}
TORCH: dict[str, dict[str, Any]] = {
    "PyTorch eager": {"channels_last": False, "compile": ""},
    "PyTorch eager, channels last": {"channels_last": True, "compile": ""},
    "PyTorch compiled, channels last": {"channels_last": True, "compile": "default"},
}
PROFILED = ("depth 20, 32x32", "depth 56, 32x32")
DEPTHS = (20, 56, 110, 1202)
DEPTHS_OF_MEMORY = (20, 110, 1202)
DEPTHS_OF_SEEDS = (8, 20, 56)
STARTED = ("resnet20", "plain56")
TRAINED = ("resnet20", "resnet56")
ACCELERATOR: dict[str, dict[str, Any]] = {
    "CIFAR depth 20": {"depth": 20},
    "CIFAR depth 56": {"depth": 56},
    "CIFAR depth 110": {"depth": 110},
    "ImageNet depth 50": {
        "family": "imagenet",
        "depth": 50,
        "shortcut": "projection",
        "size": 224,
        "batch_size": 256,
    },
}


def measure_steps(rounds: int, torch: str | None) -> Iterator[Row]:
    """Times the same step in our code, plain Flax and PyTorch, by depth and image size."""
    for shape, fields in SHAPES.items():
        cases = {name: ours(**fields | more) for name, more in OURS.items()}
        if torch:
            cases |= {name: theirs(torch, **fields, **more) for name, more in TORCH.items()}
        rows = alternate(cases, rounds)
        for row in rows:
            yield {"shape": shape, **row, "ours_is_times_as_fast": _ratio(row, rows[0])}


def _ratio(row: Row, ours: Row) -> float:
    return row["step_ms"] / ours["step_ms"]


def measure_accelerator(rounds: int, torch: str | None, nets: Sequence[str]) -> Iterator[Row]:
    """Times bfloat16 steps on one device against PyTorch with automatic mixed precision.

    Also ours in float32, in which sweeps train.
    """
    modes = TORCH | {"PyTorch CUDA graphs": {"channels_last": True, "compile": "reduce-overhead"}}
    for net in nets:
        fields = {"dtype": "bfloat16", "devices": 1, **ACCELERATOR[net]}
        cases = {
            "ours": ours(**fields),
            "ours, scanned blocks": ours(**fields, scan=True),
            "ours, float32": ours(**fields | {"dtype": "float32"}),
        }
        if torch:
            cases |= {name: theirs(torch, **fields, **more) for name, more in modes.items()}
        rows = alternate(cases, rounds)
        multiply_adds = _multiply_adds(Case(**fields))
        for row in rows:
            rate = fields.get("batch_size", 128) / row["step_ms"] * 1000
            flops = bound.FLOPS * multiply_adds * rate
            rates = {"images_per_s": rate, "tflop_per_s": flops / 1e12}
            rates["multiply_adds"] = multiply_adds
            yield {"net": net, **row, **rates, "ours_is_times_as_fast": _ratio(row, rows[0])}


def _multiply_adds(case: Case) -> int:
    """Multiply-adds of a forward pass of one image."""
    classes = 1000 if case.family == "imagenet" else 10
    model = build_resnet(case.family, case.depth, case.shortcut, num_classes=classes)
    image_shape = (case.size, case.size, case.channels)
    return cost.multiply_adds(model, image_shape)


def measure_depth(rounds: int) -> Iterator[Row]:
    """Measures tracing, compilation, steps and memory by depth, on 8x8 images."""
    small = {"size": 8, "channels": 1, "steps_per_dispatch": 2}
    for depth in DEPTHS:
        cases = {
            "unrolled": ours(depth=depth, **small),
            "scanned": ours(depth=depth, scan=True, **small),
            "scanned, rematerialised": ours(depth=depth, scan=True, remat=True, **small),
        }
        if depth > 1000:
            del cases["unrolled"]  # It compiles for minutes.
        for row in alternate(cases, rounds if depth < 1000 else 3):
            yield {"depth": depth, **row}


def measure_memory() -> Iterator[Row]:
    """Memory that compiled 32x32 programs need besides parameters and data, as XLA reports it."""
    for depth in DEPTHS_OF_MEMORY:
        for name, fields in {
            "unrolled": {"scan": False},
            "scanned": {"scan": True},
            "scanned, rematerialised": {"scan": True, "remat": True},
        }.items():
            if depth < 1000 or fields["scan"]:
                worker = Worker(*ours(depth=depth, compile_only=True, **fields))
                yield {"depth": depth, "program": name, **worker.built}
                worker.close()


def measure_seeds(rounds: int) -> Iterator[Row]:
    """Times several seeds in one program (vmap); `ms_per_seed` compares it with one seed."""
    for depth in DEPTHS_OF_SEEDS:
        small = {"depth": depth, "size": 8, "channels": 1}
        cases = {f"{n} seeds": ours(seeds=n, **small) for n in (1, 2, 4)}
        for count, row in zip((1, 2, 4), alternate(cases, rounds), strict=True):
            yield {"depth": depth, **row, "ms_per_seed": row["step_ms"] / count}


def measure_start(rounds: int) -> Iterator[Row]:
    """Seconds from the command to the end of the first 12 steps, on digits."""
    for net in STARTED:
        with tempfile.TemporaryDirectory() as folder:
            times: dict[str, list[float]] = {"cold": [], "warm": []}
            for i in range(rounds):
                for kind, seconds in times.items():
                    cache = Path(folder, f"cache{i}")
                    seconds.append(_first_record(net, Path(folder, f"{i}-{kind}"), cache))
        for kind, seconds in times.items():
            middle, runs = statistics.median(seconds), len(seconds)
            row = {"net": net, "compilation_cache": kind, "s": middle}
            yield row | {"min_s": min(seconds), "max_s": max(seconds), "runs": runs}


def _first_record(net: str, folder: Path, cache: Path) -> float:
    flags = [f"--config=configs/digits.py:{net}", f"--workdir={folder}"]
    env = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache)}
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments.train", *flags], env=env, stdout=subprocess.DEVNULL
    )
    while not (metrics := folder / "metrics.jsonl").exists() or not metrics.stat().st_size:
        if process.poll() is not None:
            raise FaultError(f"Training {net} ended with status {process.returncode}.")
        time.sleep(0.01)
    seconds = time.perf_counter() - start
    process.kill() if cache.exists() and "warm" in folder.name else process.wait()
    process.wait()
    return seconds


def measure_epoch(rounds: int) -> Iterator[Row]:
    """Compares the time of a step in the loop, without saves and evaluations, to the device's."""
    for net in TRAINED:
        fields = {"depth": int(net[6:]), "size": 8, "channels": 1, "steps_per_dispatch": 12}
        worker, whole, device = Worker(*ours(**fields)), [], []
        with tempfile.TemporaryDirectory() as folder:
            for i in range(rounds):
                device += [worker.run() for _ in range(5)]
                workdir = Path(folder, str(i))
                subprocess.run(
                    [sys.executable, "-m", "experiments.train", f"--workdir={workdir}"]
                    + [f"--config=configs/digits.py:{net}"],
                    check=True,
                    stdout=subprocess.DEVNULL,
                )
                records = [r for r in RunFolder(workdir).metrics() if r["kind"] == "train"]
                whole += [128e3 / r["images_per_second"] for r in records[1:]]
        worker.close()
        loop, step = statistics.median(whole), statistics.median(device)
        yield {"net": net, "loop_ms": loop, "device_ms": step, "ratio": loop / step}


class Options(NamedTuple):
    """How to measure. `torch`, `tensorflow`: a Python that has it; `nets`: of ACCELERATOR."""

    rounds: int
    torch: str | None
    tensorflow: str | None
    nets: Sequence[str]


SUITES: dict[str, Callable[[Options], Iterator[Row]]] = {
    "steps": lambda of: measure_steps(of.rounds, of.torch),
    "depth": lambda of: measure_depth(of.rounds),
    "memory": lambda of: measure_memory(),
    "seeds": lambda of: measure_seeds(of.rounds),
    "start": lambda of: measure_start(of.rounds),
    "epoch": lambda of: measure_epoch(of.rounds),
    "convolution": lambda of: convolution.measure(of.rounds),
    "profile": lambda of: profiling.measure({s: SHAPES[s] for s in PROFILED}, of.rounds),
    "input": lambda of: input_pipeline.measure(of.rounds, of.torch, of.tensorflow),
    "stream": lambda of: input_pipeline.measure_loop(),
    "engine": lambda of: engine.measure(),
    "accelerator": lambda of: measure_accelerator(of.rounds, of.torch, of.nets),
}


def main(args: flags.FlagValues) -> None:
    rounds = args.rounds
    if args.net and args.suite != "accelerator":
        raise UserError(f"Expected --net with --suite=accelerator, got --suite={args.suite}.")
    torch = tensorflow = None
    if args.against == "torch":
        torch = args.torch_python
        if not Path(torch).exists():
            raise UserError(
                f"Expected a Python with PyTorch for --torch_python, got {torch}. `make torch`"
                " installs one."
            )
        tensorflow = args.tensorflow_python
        if args.suite == "input" and not Path(tensorflow).exists():
            raise UserError(
                f"Expected a Python with TensorFlow for --tensorflow_python, got {tensorflow}."
                " `make .venv-prepare/installed` installs one."
            )
    folder = filesystem.path(args.workdir)
    filesystem.check_reachable(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"Cannot write to workdir {folder}: {error.strerror}.") from error
    rows = []
    nets = [args.net] if args.net else list(ACCELERATOR)
    for row in SUITES[args.suite](Options(rounds, torch, tensorflow, nets)):
        print(json.dumps(row), flush=True)
        rows.append(row)
    facts = environment.describe()
    against = [f"--against={args.against}"] if torch else []  # Without the path of a Python.
    given = [
        f"--suite={args.suite}",
        *against,
        *([f"--net={args.net}"] if args.net else []),
        f"--rounds={rounds}",
        f"--workdir={cli.shown(folder)}",
    ]
    command = cli.command("benchmark", given)
    filesystem.write_json(folder / f"{args.suite}.json", {"command": command, "rows": rows} | facts)
    table = markdown.table(
        [{name.replace("_", " "): cell for name, cell in row.items()} for row in rows]
    )
    where = f"{facts['cpu_cores']} cores, {facts['platform']}, {facts['device_kind']}"
    head = f"`{command}`, {facts['started']}, commit {facts['git_commit']}, {where}\n\n"
    filesystem.write_text(folder / f"{args.suite}.md", head + table)
    print(table)
    if args.suite == "depth":
        figures.save_costs(pd.DataFrame(rows), [folder / "depth.png", folder / "depth.svg"])


if __name__ == "__main__":
    flags.DEFINE_enum("suite", "steps", list(SUITES), "What to measure.")
    flags.DEFINE_enum("against", "", ["", "torch"], "What to compare with.")
    flags.DEFINE_string(
        "torch_python",
        ".venv-torch/bin/python",
        "A Python with PyTorch; `make torch` installs one.",
    )
    flags.DEFINE_string(
        "tensorflow_python",
        ".venv-prepare/bin/python",
        "A Python with TensorFlow, for the input suite.",
    )
    flags.DEFINE_enum(
        "net", None, list(ACCELERATOR), "Suite accelerator: one network; by default all."
    )
    flags.DEFINE_integer("rounds", 11, "How often each program is timed, in turn.", lower_bound=1)
    cli.run(main, config="none", workdir="The folder for tables and JSON.")
