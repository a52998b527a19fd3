"""Measures the cost of placing runs with Ray: many tiny runs, timed by Ray's own timeline."""

import itertools
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import jax

from configs import degradation
from experiments import sweep
from experiments.benchmarks.turns import Row
from experiments.sweeping import engine, grid
from experiments.sweeping.engine import Engine
from experiments.sweeping.grid import GridRun
from resnet_flax.errors import FaultError
from resnet_flax.runtime import cpu

RUNS = 60


def measure() -> Iterator[Row]:
    """Times a sweep on Ray, a run a core, then one run after another. Both compile from nothing."""
    try:
        import ray  # Ray is optional: imported only for this suite.

        from experiments.sweeping import ray_cluster
    except ImportError as error:
        raise engine.no_ray("--suite=engine", error) from error
    runs = _runs()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(Path(folder, "xla"))  # For Ray's tasks.
        with ray_cluster.ray_engine("", 1, 1, "", 0) as (run_all, _):
            seconds = _timed(runs, Path(folder), run_all)
            tasks = [
                (event["tid"], event["ts"] / 1e6, event["dur"] / 1e6)
                for event in ray.timeline()
                if event["name"] == "task:execute" and event["dur"]
            ]
    yield {"engine": "ray", "runs": RUNS, "s": seconds, **_utilisation(tasks, cpu.cores())}
    with tempfile.TemporaryDirectory() as folder:
        jax.config.update("jax_compilation_cache_dir", str(Path(folder) / "xla"))
        yield {"engine": "local", "runs": RUNS, "s": _timed(runs, Path(folder), engine.run_here)}


def _runs() -> list[GridRun]:
    """Tiny runs with two programs: plain and residual networks of 8 layers."""
    config = degradation.get_config("digits")
    config.depths, config.seeds = (8,), tuple(range(RUNS // 2))
    config.run.model.widths = (4, 8, 8)
    return grid.runs_of(config.to_dict())


def _timed(runs: list[GridRun], workdir: Path, run_all: Engine) -> float:
    grid.save(runs, workdir)
    began = time.monotonic()
    states = sweep.run_sweep(runs, workdir, run_all)
    if any(state != "finished" for state in states.values()):
        raise FaultError(f"Expected {RUNS} finished runs, got {states}.")
    return time.monotonic() - began


def _utilisation(tasks: list[tuple[str, float, float]], cores: int) -> Row:
    """Share of time in which the cores work, after each has ended its first run, which compiles.

    `tasks`: process, beginning and duration of each, in seconds. A gap is the time between the end
    of a task and the beginning of the next one in the same process.
    """
    by_process = defaultdict(list)
    for process, begin, seconds in sorted(tasks, key=lambda task: task[1]):
        by_process[process].append((begin, begin + seconds))
    first = max(spans[0][1] for spans in by_process.values())
    last = max(end for spans in by_process.values() for _, end in spans)
    later = [span for spans in by_process.values() for span in spans if span[1] > first]
    busy = sum(end - max(begin, first) for begin, end in later)
    gaps = [
        after[0] - before[1]
        for spans in by_process.values()
        for before, after in itertools.pairwise(spans)
    ]
    return {
        "processes": len(by_process),
        "first_runs_s": first - min(begin for _, begin, _ in tasks),
        "median_run_s": statistics.median(end - begin for begin, end in later),
        "median_gap_ms": 1e3 * statistics.median(gaps),
        "utilisation": busy / (cores * (last - first)),
    }
