"""The least time of a training step on a chip. A bound: it was not measured."""

import functools
from pathlib import Path

from experiments.compiling import identity, report
from experiments.compiling.chips import CHIPS
from experiments.compiling.report import Row
from resnet_flax.config import RunConfig

# For each multiply-add of a forward pass: two, and the backward pass takes twice as many.
FLOPS = 6
COMPILED = Path("experiments/results/accelerators.json")


def step_seconds(config: RunConfig, multiply_adds: int, chip: str) -> float:
    """Seconds of one step of the whole batch on one chip, at best.

    The chip works at its published peak. If the program was compiled for one chip, the step also
    takes the time in which its bytes move at the published bandwidth. `multiply_adds`: of a forward
    pass of one image. `chip`: a name in `CHIPS`.
    """
    compute = FLOPS * multiply_adds * config.data.batch_size / CHIPS[chip].flops[config.model.dtype]
    own = identity.of(config)
    compiled = (row["least_ms"] / 1e3 for row in _rows() if _is_of(row, own, chip))
    return max([compute, *compiled])


@functools.cache
def _rows() -> list[Row]:
    return report.load(COMPILED.absolute())


def _is_of(row: Row, own: identity.Program, chip: str) -> bool:
    """Whether a row is of this program's step, on one chip."""
    is_there = "least_ms" in row and row["topology"].startswith(f"{chip}:") and row["chips"] == 1
    its = row["program"]
    return is_there and all(own[part] == its[part] for part in ("model", "data", "optim"))
