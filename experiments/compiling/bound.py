"""The least time of a training step on a chip, by published peaks. It was not measured."""

import functools
from collections.abc import Sequence
from pathlib import Path

from experiments.compiling import identity, report
from experiments.compiling.chips import CHIPS
from experiments.compiling.report import Row
from resnet_flax.config import RunConfig

# For each multiply-add of a forward pass: two, and the backward pass takes twice as many. The first
# convolution needs no gradient of the image, so this is too high: by 2.2 % for ResNet-18 on
# ImageNet, by 1.1 % for ResNet-34, and by less for the paper's other networks.
FLOPS = 6
COMPILED = Path(__file__).parents[1] / "results" / "accelerators.json"


def step_seconds(
    configs: Sequence[RunConfig], multiply_adds: Sequence[int], chip: str
) -> list[float]:
    """Seconds of one step of each run's whole batch on one chip, at best.

    The chip works at its published peak. If `counts_bytes`, a step takes the time in which its
    bytes move at the published bandwidth, if that is longer. `multiply_adds`: of a forward pass of
    one image, for each run. `chip`: a name in `CHIPS`.
    """
    peaks = CHIPS[chip].flops
    seconds = [
        FLOPS * count * config.data.batch_size / peaks[config.model.dtype]
        for config, count in zip(configs, multiply_adds, strict=True)
    ]
    if not counts_bytes(configs, chip):
        return seconds
    moves = [max(_compiled(config, chip)) for config in configs]
    return [max(both) for both in zip(seconds, moves, strict=True)]


def counts_bytes(configs: Sequence[RunConfig], chip: str) -> bool:
    """Whether the programs of all runs were compiled for one such chip.

    Bytes count for all runs or for none. Otherwise a run would seem slower than another for the
    sole reason that it was compiled.
    """
    return all(_compiled(config, chip) for config in configs)


def _compiled(config: RunConfig, chip: str) -> list[float]:
    """The least seconds of a step, of each compiled program of this config on one chip."""
    own = identity.of(config)
    return [row["least_ms"] / 1e3 for row in _rows() if _is_of(row, own, chip)]


@functools.cache
def _rows() -> list[Row]:
    return report.load(COMPILED)


def _is_of(row: Row, own: identity.Program, chip: str) -> bool:
    """Whether a row is of this program's step, on one chip."""
    is_there = "least_ms" in row and row["topology"].startswith(f"{chip}:") and row["chips"] == 1
    its = row["program"]
    return is_there and all(own[part] == its[part] for part in ("model", "data", "optim"))
