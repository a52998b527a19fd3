"""Tables of the READMEs from the records of benchmarks."""

import json
from collections.abc import Mapping
from typing import Any

from experiments.reporting.readme_tables import RESULTS, Rows, short


def _benchmark(suite: str) -> list[dict[str, Any]]:
    return json.loads((RESULTS / f"benchmarks/{suite}.json").read_text())["rows"]


STEP_PROGRAMS: Mapping[str, str] = {
    "ours": "ours",
    "plain Flax, one device": "plain Flax (`nn.Conv`, one device)",
    "PyTorch eager, channels last": "PyTorch eager, channels last",
    "PyTorch compiled, channels last": "PyTorch compiled, channels last",
}
STEP_SHAPES = ("depth 20, 32x32", "depth 56, 32x32", "depth 20, 8x8")


def step_times() -> dict[tuple[str, str], float]:
    """(program, shape) -> milliseconds a step."""
    return {(row["program"], row["shape"]): row["step_ms"] for row in _benchmark("steps")}


def profile() -> Rows:
    """Milliseconds of a step on one device, by operation, and the least that it needs there."""
    rows: dict[str, dict[str, float]] = {}
    for row in _benchmark("profile"):
        depth = row["shape"].partition(",")[0]
        line = rows.setdefault(row["operation"], {})
        for name, field in ((depth, "ms"), (f"{depth}, least", "least_ms")):
            line[name] = line.get(name, 0.0) + row[field]
    return [
        {"operation": what} | {name: f"{value:.1f}" for name, value in line.items()}
        for what, line in rows.items()
    ]


def steps() -> Rows:
    """Milliseconds a step, by program and shape."""
    found = step_times()
    return [
        {"program": words} | {shape: short(found[program, shape]) for shape in STEP_SHAPES}
        for program, words in STEP_PROGRAMS.items()
    ]


def schedule_hours() -> Rows:
    """Hours of the paper's 64,000 steps, computed from measured step times."""
    found = step_times()
    return [
        {
            "depth": depth,
            "ms a step, measured": short(ms := found["ours", f"depth {depth}, 32x32"]),
            "hours of 64,000 steps, computed": f"{64_000 * ms / 3.6e6:.1f}",
        }
        for depth in (20, 56)
    ]


def memory() -> Rows:
    """Time to trace and compile, and memory, on 32x32 images."""
    return [
        {
            "depth": row["depth"],
            "program": row["program"],
            "trace and compile, s": f"{row['trace_s'] + row['compile_s']:.0f}",
            "memory beside the state, MiB": f"{row['temporary_mib']:,.0f}",
        }
        for row in _benchmark("memory")
    ]


def start() -> Rows:
    """Seconds from the command to the end of the first 12 steps."""
    words = {"cold": "nothing compiled before", "warm": "programs compiled before"}
    return [
        {
            "network": row["net"],
            "cache": words[row["compilation_cache"]],
            "seconds": f"{row['s']:.1f}",
        }
        for row in _benchmark("start")
    ]


def input_rates() -> Rows:
    """Images a second from JPEG files to batches, by program."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for row in _benchmark("input"):
        key = row["files"], row["program"]
        cells = rows.setdefault(key, {"files": key[0], "program": key[1]})
        cores = f"{row['cores']} core{'s' if row['cores'] > 1 else ''}"
        cells[f"{row['crop']}, {cores}"] = f"{row['images_per_s']:.0f}"
    return list(rows.values())
