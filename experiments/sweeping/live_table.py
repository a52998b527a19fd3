"""Shows the state of a sweep as a table for a terminal, with a line for each run that fits."""

import math
from collections import Counter

from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from experiments.sweeping.monitor import RunMonitor, SweepMonitor

STYLES = {
    "finished": "green",
    "running": "bold cyan",
    "not begun": "dim",
    "preempted": "yellow",
    "interrupted": "yellow",
    "unreadable": "red",
    "diverged": "bold red",
    "failed": "bold red",
}
_NEXT = 3
_OTHER_LINES = 4  # Headings, the count of hidden runs, the bar, and the cursor.


def live_table(monitor: SweepMonitor, console: Console) -> RenderableType:
    """The current state of the runs, and a progress bar of the whole sweep."""
    monitor.refresh()
    shown = _most_important(monitor.runs, max(1, console.height - _OTHER_LINES))
    table = Table(
        Column("run", no_wrap=True),
        Column("state", no_wrap=True, min_width=len("interrupted")),
        *(
            Column(heading, justify="right", no_wrap=True, min_width=width)
            for heading, width in (("step", 9), ("loss", 6), ("train error", 6), ("images/s", 8))
        ),
        Column("left", justify="right", no_wrap=True, min_width=8),
        box=None,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    for run in shown:
        table.add_row(*_cells(run))
    hidden = Counter(run.state for run in monitor.runs if run not in shown)
    return Group(table, *([_summary(hidden)] if hidden else []), _overall(monitor, console.width))


def _most_important(runs: list[RunMonitor], count: int) -> list[RunMonitor]:
    """Chooses `count` runs: running, then failed, next, last finished. Keeps the grid's order."""
    next_runs = [run for run in runs if run.state == "not begun"][:_NEXT]

    def importance(i: int) -> tuple[int, int]:
        if runs[i].state == "finished":
            return 3, -i
        if runs[i].state == "not begun":
            return (2 if runs[i] in next_runs else 4), i
        return (0 if runs[i].state == "running" else 1), i

    return [runs[i] for i in sorted(sorted(range(len(runs)), key=importance)[:count])]


def _cells(run: RunMonitor) -> list[Text]:
    error, rate, loss = run.error, run.images_per_second, run.loss
    values = [
        f"{run.step}/{run.point.steps}",
        "" if loss is None else f"{loss:.4f}" if abs(loss) < 100 else f"{loss:.1e}",
        "" if error is None else f"{error:.2%}",
        "" if rate is None else f"{rate:,.0f}",
        duration(run.seconds_left),
    ]
    # As Text: names from a folder must not be read as markup.
    return [Text(run.point.name), Text(run.state, STYLES[run.state]), *map(Text, values)]


def _summary(states: Counter[str]) -> Text:
    parts = [Text(f"{count} {state}", STYLES[state]) for state, count in states.items()]
    return Text("and ") + Text(", ").join(parts)


def _overall(monitor: SweepMonitor, width: int) -> RenderableType:
    states = Counter(run.state for run in monitor.runs)
    left = monitor.seconds_left
    line = Table.grid(Column(no_wrap=True), Column(ratio=1), Column(no_wrap=True), expand=True)
    line.padding = (0, 1)
    # Leaves room for the "^C" that a terminal writes at the cursor. It must not wrap.
    line.width = width - len("^C") - 1
    line.add_row(
        Text(f"{states['finished']} of {len(monitor.runs)} finished"),
        ProgressBar(total=monitor.work, completed=monitor.work - monitor.work_left),
        Text("" if monitor.is_over or left is None else f"{duration(left)} left"),
    )
    return line


def duration(seconds: float | None) -> str:
    """Writes seconds as h:mm:ss, and None as ""."""
    if seconds is None:
        return ""
    minutes, second = divmod(math.ceil(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}"
