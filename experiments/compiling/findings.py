"""What a compiled program says of a training step: memory, collectives, loops, copies, bytes.

B: images of a step on one chip; k: steps of a dispatch.
"""

import re
from collections import defaultdict
from typing import Any

from experiments.compiling import hlo
from experiments.compiling.chips import Chip
from experiments.compiling.programs import Compiled

_ALLOCATION = re.compile(r"^allocation \d+: size (\d+), (.*)$", re.MULTILINE)
_VALUE = re.compile(r"^ value: <\d+ (\S+) @\d+> \(size=(\d+),offset=\d+\): (\S+)", re.MULTILINE)
_KINDS = {
    "arguments": "parameter ",
    "constants": "constant",
    "outputs": "maybe-live-out",
    "temporaries": "preallocated-temp",
}
_COLLECTIVES = re.compile(
    r"(all-reduce|all-gather|reduce-scatter|collective-permute|all-to-all)(-start)?"
)
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_NETWORK = re.compile(r"\((ResNet|VGG)")
_LARGE = 2**20  # Bytes of a copy that is worth a line.
_LARGEST = 3


def of(
    compiled: Compiled, chip: Chip, images: int, steps: int, dtype: str, flops: int
) -> dict[str, Any]:
    """The findings of one program, in JSON types. Times and bytes are of one chip and one step.

    - `images`, `steps`: B and k.
    - `flops`: of the network's convolutions and matrix products, for one image, there and back.
    """
    program = hlo.Program(compiled.text)
    runs = list(program.runs())
    moved = sum(program.moved(run) * run.times for run in runs) / steps
    work = flops * images
    least = {"compute": work / chip.flops[dtype], "memory": moved / chip.bandwidth}
    bound = max(least, key=lambda name: least[name])
    found = (
        {"estimate": estimate(compiled.text, chip.clock, steps)}
        if _has_estimate(compiled, chip)
        else {}
    )
    return found | {
        "memory": memory(compiled.assignment),
        "collectives": collectives(runs, steps),
        "padded": padded(compiled.assignment),
        "serial_loops": serial_loops(program, runs, images),
        "relayouts": relayouts(program, runs, steps),
        "flops": work,
        "bytes": round(moved),
        "least_ms": 1e3 * least[bound],
        "bound_by": bound,
    }


def _has_estimate(compiled: Compiled, chip: Chip) -> bool:
    return chip.clock > 0 and _CYCLES.search(compiled.text) is not None


def memory(assignment: str) -> dict[str, int]:
    """Bytes of the chip's main memory, by kind and in total."""
    found = dict.fromkeys(_KINDS, 0)
    for size, rest in _ALLOCATION.findall(assignment):
        if re.match(r"color [1-9]", rest) or "thread-local" in rest:
            continue  # In a memory on the chip, or in registers.
        kind = next((kind for kind, word in _KINDS.items() if word in rest), "outputs")
        found[kind] += int(size)
    return found | {"total": sum(found.values())}


def padded(assignment: str) -> list[dict[str, Any]]:
    """The largest arrays that padding makes more than a quarter larger."""
    found = {}
    for _, size, kind in _VALUE.findall(assignment):
        arrays = hlo.arrays(kind)
        if len(arrays) == 1 and arrays[0].space == 0 and int(size) >= _LARGE:
            times = int(size) / max(arrays[0].logical_bytes, 1)
            if times > 1.25:
                row = {"array": str(arrays[0]), "bytes": int(size), "times": times}
                found[kind] = int(size), row
    return [row for _, row in sorted(found.values(), key=lambda each: -each[0])][:_LARGEST]


def collectives(runs: list[hlo.Run], steps: int) -> dict[str, dict[str, float]]:
    """By kind: how many a step, and their bytes."""
    found: dict[str, dict[str, float]] = defaultdict(lambda: {"count": 0.0, "bytes": 0.0})
    for run in runs:
        if match := _COLLECTIVES.fullmatch(run.instruction.opcode):
            arrays = run.instruction.arrays
            has_source = match[2] and match[1] != "all-reduce"
            results = arrays[len(arrays) // 2 :] if has_source else arrays
            found[match[1]]["count"] += run.times / steps
            size = sum(array.logical_bytes for array in results)
            found[match[1]]["bytes"] += run.times * size / steps
    return dict(found)


def serial_loops(program: hlo.Program, runs: list[hlo.Run], images: int) -> list[dict[str, Any]]:
    """Loops inside a step that treat one image after another."""
    return [
        {"times": images, "source": run.instruction.source}
        for run in runs
        if run.instruction.opcode == "while"
        and "while" in run.instruction.source.rpartition("/")[0]
        and not _NETWORK.search(run.instruction.source)  # Scanned blocks.
        and program.trips(run.instruction) == images
    ]


def relayouts(program: hlo.Program, runs: list[hlo.Run], steps: int) -> list[dict[str, Any]]:
    """Copies of large arrays in main memory that only change how they lie, the largest first."""
    found = []
    for run in runs:
        one, around = run.instruction, program.computations[run.computation]
        if one.opcode != "copy" or one.operands[0] not in around:
            continue
        target, source = one.arrays[0], around[one.operands[0]].arrays[0]
        moved = (target.order, target.tile) != (source.order, source.tile)
        if moved and target.space == source.space == 0 and target.bytes >= _LARGE:
            times = run.times / steps
            row = {"array": str(target), "bytes": target.bytes, "times_a_step": times}
            found.append((target.bytes * times, row | {"source": one.source}))
    return [row for _, row in sorted(found, key=lambda each: -each[0])][:_LARGEST]


def estimate(text: str, clock: float, steps: int) -> dict[str, Any]:
    """XLA's own estimate of a step, in ms, and its largest parts outside the network.

    It is a model of the chip: nobody measured it. Only a program with generated code has it.
    """
    network, parts = 0.0, list[tuple[float, str]]()
    for run in hlo.Program(text).runs():
        one = run.instruction
        found = _CYCLES.search(one.attributes)
        if not found or one.opcode == "while":
            continue
        milliseconds = 1e3 * run.times * int(found[1]) / clock / steps
        if _NETWORK.search(one.source):
            network += milliseconds
        else:
            parts.append((milliseconds, f"{one.name} {one.arrays[0]} {one.source}".strip()))
    parts.sort(reverse=True)
    rest = sum(part for part, _ in parts)
    return {"step_ms": network + rest, "network_ms": network, "others": parts[:_LARGEST]}
