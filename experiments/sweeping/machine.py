"""A machine's chips and their speed, and the seconds that a run takes on them."""

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from experiments.compiling import bound
from experiments.compiling.chips import CHIPS
from experiments.sweeping.grid import GridRun
from resnet_flax.config import Section
from resnet_flax.errors import UserError


class Known(Section):
    """A number and its source."""

    source: str
    measured: bool
    """Whether it was measured with this code on this machine. The plan marks others as ASSUMED."""


class StartUp(Known):
    seconds: NonNegativeFloat
    """From a run's beginning to its first step. Most of it is compilation."""


class Speed(Known):
    """The speed of one chip that trains alone."""

    images_per_second: PositiveFloat | None
    """None: not known."""
    multiply_adds: PositiveInt
    """For a forward pass of one image in that network, as `experiments.describe` counts them."""


class Scaling(Known):
    share: Annotated[float, Field(gt=0, le=1)] | None
    """The share of its speed that a chip keeps when twice as many chips train the same batch."""


class MachineConfig(Section):
    """Chips and their speed. `speed` and `scaling` are by the name of the data set."""

    name: str
    chips: PositiveInt
    chip: str
    """The kind of chip, as experiments/compiling/chips.py has it. Empty: another kind."""
    startup: StartUp
    speed: dict[str, Speed]
    scaling: dict[str, Scaling]
    """Without an entry for a data set, its runs get one chip each."""


def run_seconds(runs: Sequence[GridRun], machine: MachineConfig, chips: int) -> list[float]:
    """Seconds that each run takes on `chips` chips, a power of 2.

    Raises UserError if the speed of the machine is not known.
    """
    steps = _step_seconds(runs, machine)
    return [
        machine.startup.seconds
        + run.config.steps * step / _speed_up(run.config.data.name, machine, chips)
        for run, step in zip(runs, steps, strict=True)
    ]


def _step_seconds(runs: Sequence[GridRun], machine: MachineConfig) -> list[float]:
    """Seconds of a step of each run on one chip. All are measured, or all are bounds."""
    seconds = []
    for run in runs:
        speed = _speed(run.config.data.name, machine)
        if speed.images_per_second is None:
            counts = [run.point.multiply_adds for run in runs]
            return bound.step_seconds([run.config for run in runs], counts, machine.chip)
        # Training takes about 3 times a forward pass, of any network.
        work = run.point.multiply_adds * run.config.data.batch_size
        seconds.append(work / (speed.multiply_adds * speed.images_per_second))
    return seconds


def _speed(data: str, machine: MachineConfig) -> Speed:
    if data not in machine.speed:
        raise UserError(
            f"Expected a data set of machine.speed: {', '.join(machine.speed)}, got {data!r}."
            " To add one, write a file like configs/machines.py."
        )
    speed = machine.speed[data]
    if speed.images_per_second is None and machine.chip not in CHIPS:
        raise UserError(
            f"The speed of {machine.name} on {data} is not known. Measure it there with"
            " `make benchmark SUITES=accelerator`. Then give"
            f" --machine.speed.{data}.images_per_second=N and"
            f" --machine.speed.{data}.multiply_adds=M of one network. Or give --machine.chip with"
            f" one of {', '.join(CHIPS)}: the plan then says what is possible at best."
        )
    return speed


def share(data: str, machine: MachineConfig) -> float | None:
    return machine.scaling[data].share if data in machine.scaling else None


def _speed_up(data: str, machine: MachineConfig, chips: int) -> float:
    """Speed of a run on `chips` chips over its speed on one chip."""
    doublings = chips.bit_length() - 1
    return chips * (share(data, machine) or 1) ** doublings
