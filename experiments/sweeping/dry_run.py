"""Lists the runs of a grid, their cost and the time that they will take. Trains none of them."""

import statistics
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from experiments.benchmarks import worker
from experiments.sweeping.grid import GridRun
from experiments.sweeping.live_table import duration
from experiments.sweeping.monitor import SweepMonitor
from resnet_flax.models import cost
from resnet_flax.storage.filesystem import AnyPath
from resnet_flax.training import architecture, build

TIMED = 5
# Of images in memory. Of larger ones, a step may take half a minute.
STEPS_PER_DISPATCH = 4


def show(runs: Sequence[GridRun], workdir: AnyPath, console: Console) -> None:
    """Prints a line for each run, and the time of those that have not ended."""
    monitor = SweepMonitor(workdir, [run.point for run in runs])
    monitor.refresh()
    work = [run.work_left for run in monitor.runs]
    speed, source = _speed(runs, monitor)
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for heading in ("run", "kind", *runs[0].varying.in_grid):
        table.add_column(heading, no_wrap=True)
    for heading in ("depth", "multiply-adds", "steps left", "time"):
        table.add_column(heading, justify="right", no_wrap=True)
    for run, left in zip(runs, work, strict=True):
        point = run.point
        values = point.name, point.kind, *point.varied.values(), point.depth
        steps = left // (point.multiply_adds * point.batch_size)
        cost, seconds = f"{point.multiply_adds:,}", duration(left / speed if speed else None)
        # As Text: names must not be read as markup.
        table.add_row(*(Text(str(value)) for value in (*values, cost, steps, seconds)))
    console.print(table)
    total = f"about {duration(sum(work) / speed)}" if speed else "time not known"
    console.print(f"{len(runs)} runs, one after another: {total}.", source, markup=False)
    console.print("Evaluation, compilation and checkpoints take extra time. Nothing was written.")


def _speed(runs: Sequence[GridRun], monitor: SweepMonitor) -> tuple[float | None, str]:
    """Multiply-adds of forward passes a second in training, and where the number comes from.

    None if it cannot be measured.
    """
    rates = [run.point.multiply_adds * (run.pace or 0) for run in monitor.runs]
    if any(rates):
        return statistics.median(
            filter(None, rates)
        ), "The speed is the one that this folder records."
    run = min(runs, key=lambda run: run.point.multiply_adds)
    model, data = run.config.model, run.config.data
    (size, _, channels), _ = build.trained_images(data)
    if model.family != "cifar" and model.family != "imagenet":
        return None, "Only plain and residual networks are timed."
    # In this process: it has opened the devices, and a TPU has one process.
    Console(stderr=True).print(f"times steps of {run.name} on this machine", markup=False)
    built = worker.build(
        worker.Case(
            family=model.family,
            depth=model.depth,
            shortcut=model.shortcut,
            block=model.block,
            widths=model.widths,
            norm=model.norm,
            size=size,
            channels=channels,
            batch_size=data.batch_size,
            dtype=model.dtype,
            scan=architecture.scans(model),
            remat=model.remat,
            steps_per_dispatch=STEPS_PER_DISPATCH if data.crop == "none" else 1,
        )
    )
    step = statistics.median(built.run() for _ in range(TIMED)) / 1000
    # Square images were timed. Those of the run may not be square.
    timed = cost.multiply_adds(built.model, (size, size, channels))
    return (
        timed * data.batch_size / step,
        f"A step of {run.name} took {step * 1000:.1f} ms here now. Times of other networks follow"
        f" from their multiply-adds. Its compilation took"
        f" {built.costs['trace_s'] + built.costs['compile_s']:.0f} s.",
    )
