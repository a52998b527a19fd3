"""Shows a sweep or a run that trains elsewhere. Reads only its records. Needs no JAX.

.venv/bin/python -m experiments.watch --workdir=runs/digits
"""

import contextlib
import functools
import time

from absl import flags

from experiments import cli
from experiments.sweeping import live_table
from experiments.sweeping.monitor import SweepMonitor
from resnet_flax.runtime import output
from resnet_flax.runtime.progress import RunProgress
from resnet_flax.storage import filesystem
from resnet_flax.storage.filesystem import AnyPath
from resnet_flax.storage.sweep_folder import sweep_or_run

REFRESH_SECONDS = 2.0


def watch(workdir: AnyPath) -> None:
    """Shows the runs until every one has ended or nobody reads the output."""
    sweep = sweep_or_run(workdir)
    monitor = SweepMonitor(sweep.folder_of_runs, sweep.points.values())
    monitor.refresh()
    lines = [run.state_line() for run in monitor.runs if run.state != "not begun"]
    with RunProgress(view=functools.partial(live_table.live_table, monitor)) as progress:
        while True:
            if not progress.console.is_terminal:
                for line in lines:
                    progress.say(line)
            if monitor.is_over or output.has_no_reader():
                return
            time.sleep(REFRESH_SECONDS)
            lines = monitor.refresh()


def main(args: flags.FlagValues) -> None:
    with contextlib.suppress(KeyboardInterrupt):
        watch(filesystem.path(args.workdir))


if __name__ == "__main__":
    cli.run(
        main, config="none", workdir="The folder of a sweep or of a run; nothing in it is changed."
    )
