"""Prints how a sweep maps on a machine: wall time, utilisation and chip-hours by chips a run.

.venv/bin/python -m experiments.plan --config=configs/degradation.py:imagenet \
    --machine=configs/machines.py:h100_8

The command runs nothing. The time of a run is its start-up and its training. The speed of training
was measured (or is assumed) for another network of the same data set. The ratio of multiply-adds
gives the speed of this one. If no speed is known, the plan says what a run takes at best, by the
chip's published peaks. The longest run begins first, on the chips that are free first. The
plan leaves out evaluations, checkpoints, preemptions and slow input.
"""

import heapq
from collections.abc import Sequence
from typing import Any, NamedTuple

from absl import flags
from ml_collections import config_flags
from rich.console import Console
from rich.table import Table

from experiments import cli
from experiments.compiling import bound
from experiments.compiling.chips import CHIPS
from experiments.sweeping import devices, grid
from experiments.sweeping.grid import GridRun
from experiments.sweeping.machine import Known, MachineConfig, run_seconds, share
from resnet_flax.config import RunConfig, parse
from resnet_flax.errors import UserError
from resnet_flax.runtime.cpu import SMALLEST_SHARE


class Option(NamedTuple):
    """The outcome of giving each run `chips_a_run` chips."""

    chips_a_run: int
    runs_at_once: int
    seconds: tuple[float, ...]  # One for each run.
    wall: float  # Seconds.
    utilisation: float  # The share of all chip time in which a run holds the chip.

    @property
    def chip_hours(self) -> float:
        """Hours in which runs hold chips. Idle chips do not count."""
        return self.chips_a_run * sum(self.seconds) / 3600

    @property
    def is_bounded_by_longest_run(self) -> bool:
        """Whether the longest run alone sets the wall time: no better schedule exists."""
        return max(self.seconds) >= sum(self.seconds) / self.runs_at_once


def list_schedule(seconds: Sequence[float], slots: int) -> list[float]:
    """Returns when each slot ends its last run.

    The longest run begins first, each in the slot that is free first.
    """
    free = [0.0] * slots
    for length in sorted(seconds, reverse=True):
        heapq.heapreplace(free, free[0] + length)
    return free


def options(runs: Sequence[GridRun], machine: MachineConfig) -> list[Option]:
    """Returns an option for each number of chips that a run may have, in ascending order.

    Raises UserError if the speed of the machine is not known.
    """
    counts = set.intersection(*(set(_chips_a_run(run.config, machine)) for run in runs))
    return [_option(runs, machine, count) for count in sorted(counts)]


def _option(runs: Sequence[GridRun], machine: MachineConfig, chips: int) -> Option:
    slots = machine.chips // chips
    seconds = tuple(run_seconds(runs, machine, chips))
    wall = max(list_schedule(seconds, slots))
    utilisation = chips * sum(seconds) / (machine.chips * wall)
    return Option(chips, slots, seconds, wall, utilisation)


def _chips_a_run(config: RunConfig, machine: MachineConfig) -> list[int]:
    """Returns 1, 2, 4, ... up to all chips, where scaling is known and the batch can be shared."""
    counts = [1]
    if share(config.data.name, machine) is not None:
        counts += [2**n for n in range(1, machine.chips.bit_length())]
    return [n for n in counts if n == 1 or _may_share(config, n)]


def _may_share(config: RunConfig, chips: int) -> bool:
    """Whether each chip gets the same share of the batch, with enough images for BN."""
    return not config.data.batch_size % chips and not devices.sees_few(config, chips)


def best(found: Sequence[Option]) -> Option:
    """The option with the least wall time. Of equal ones, it has the fewest chips a run."""
    return min(found, key=lambda option: option.wall)


def explain(
    found: Sequence[Option], configs: Sequence[RunConfig], machine: MachineConfig
) -> list[str]:
    """Explains, in lines, which axis is parallel, why, and where the numbers come from.

    `configs`: those of the runs.
    """
    chosen, more = best(found), 2 * found[-1].chips_a_run
    in_the_way = next(config for config in configs if more not in _chips_a_run(config, machine))
    return [
        _axis(chosen),
        *(_why_not(other, chosen, machine) for other in _beside(found, chosen)),
        *_why_no_more(more, in_the_way, machine),
        *_known(configs, machine),
    ]


def _axis(chosen: Option) -> str:
    count = min(chosen.runs_at_once, len(chosen.seconds))
    if chosen.chips_a_run == 1:
        return f"Runs over chips: one chip a run, {count} at once."
    return f"Chips over runs: {chosen.chips_a_run} chips a run, {count} at once."


def _beside(found: Sequence[Option], chosen: Option) -> list[Option]:
    """The options with half and with twice as many chips a run."""
    place = found.index(chosen)
    return [*found[max(place - 1, 0) : place], *found[place + 1 : place + 2]]


def _why_not(other: Option, chosen: Option, machine: MachineConfig) -> str:
    busy = other.chips_a_run * min(other.runs_at_once, len(other.seconds))
    if busy < machine.chips:
        reason = f"{machine.chips - busy} of {machine.chips} chips are never used"
    elif other.chips_a_run > chosen.chips_a_run:
        gain = max(chosen.seconds) / max(other.seconds)
        reason = f"twice the chips make a run {gain:.2f} times as fast"
    elif other.is_bounded_by_longest_run:
        reason = "all wait for the longest run"
    else:
        reason = "chips wait for the last runs to end"
    count = f"{other.chips_a_run} chip{'s' if other.chips_a_run > 1 else ''} a run"
    return f"With {count} it takes {duration(other.wall)}: {reason}."


def _why_no_more(chips: int, config: RunConfig, machine: MachineConfig) -> list[str]:
    """Explains why `chips` chips a run are no option. Empty if the machine has fewer."""
    data, images = config.data.name, config.data.batch_size
    if chips > machine.chips:
        return []
    if share(data, machine) is None:
        return [f"More chips a run are possible only if machine.scaling.{data}.share is known."]
    if images % chips:
        return [f"{chips} chips a run are not possible: they cannot share {images} images equally."]
    return [
        f"With {chips} chips a run, batch normalisation would see {images // chips} images, fewer"
        f" than the {SMALLEST_SHARE} of Sec. 4.2. A larger config.run.data.batch_size allows it,"
        ' or config.run.model.bn_scope="global". Both are other experiments.'
    ]


def _known(configs: Sequence[RunConfig], machine: MachineConfig) -> list[str]:
    """Where each number comes from, for each data set of the runs."""
    by_data = dict.fromkeys(config.data.name for config in configs)
    startup = _source(f"start-up, {machine.startup.seconds:g} s a run", machine.startup)
    # As `machine.run_seconds` computes: all runs go by the peaks if one of them has to.
    is_bound = any(machine.speed[data].images_per_second is None for data in by_data)
    lines = []
    for data in by_data:
        named = f" on {data}" if len(by_data) > 1 else ""
        speed, what = machine.speed[data], f"speed{named}"
        if is_bound:
            lines.append(_bound_source(what, configs, machine))
        if speed.images_per_second is not None:
            source = _source(f"{what}, {speed.images_per_second:g} images/s a chip", speed)
            lines.append(f"NOT USED: {source}" if is_bound else source)
        scaling = machine.scaling.get(data)
        if scaling and scaling.share is not None:
            what = f"scaling{named}, {scaling.share:g} kept at each doubling"
            lines.append(_source(what, scaling))
    return [*lines, startup]


def _bound_source(what: str, configs: Sequence[RunConfig], machine: MachineConfig) -> str:
    chip = CHIPS[machine.chip]
    counts_bytes = bound.counts_bytes(configs, machine.chip)
    counted = (
        "and by the bytes that the programs move (experiments/results/accelerators.md)"
        if counts_bytes
        else "without the bytes that the programs move: not all were compiled for this chip"
    )
    may_be_faster = counts_bytes and chip.may_save_bytes
    faster = "A cache may save bytes" if may_be_faster else "No run is as fast"
    return (
        f"AT BEST: {what}, by the published peaks of {chip.name} ({chip.source}), {counted}."
        f" {faster}: `make benchmark SUITES=accelerator` measures it."
    )


def _source(what: str, known: Known) -> str:
    return f"{'Measured' if known.measured else 'ASSUMED'}: {what} ({known.source})."


def duration(seconds: float) -> str:
    """Writes a duration in units that fit it: minutes, hours or days."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


def _each(values: set[Any]) -> str:
    return ", ".join(map(str, sorted(values)))


def main(args: flags.FlagValues) -> None:
    runs = grid.runs_of(cli.sweep_config(args))
    if not args.machine:
        raise UserError("Expected --machine=FILE.py:NAME; see configs/machines.py.")
    machine = parse(args.machine.to_dict(), MachineConfig, "machine")
    found = options(runs, machine)
    data = _each({run.config.data.name for run in runs})
    table = Table(title=f"{len(runs)} runs of {data} on {machine.name}")
    table.add_column("chips a run")
    for column in ("runs at once", "images a chip", "wall time", "utilisation", "chip-hours"):
        table.add_column(column, justify="right", no_wrap=True)
    for option in found:
        table.add_row(
            f"{option.chips_a_run}{' (best)' if option == best(found) else ''}",
            f"{min(option.runs_at_once, len(runs))}",
            _each({run.config.data.batch_size // option.chips_a_run for run in runs}),
            duration(option.wall),
            f"{option.utilisation:.0%}",
            f"{option.chip_hours:,.1f}",
        )
    console = Console(highlight=False, width=max(Console().width, 100))
    console.print(table)
    for line in explain(found, [run.config for run in runs], machine):
        console.print(line, soft_wrap=True, markup=False)


if __name__ == "__main__":
    config_flags.DEFINE_config_file("machine", help_string="FILE.py:NAME, see configs/machines.py.")
    cli.run(main, config="sweep")
