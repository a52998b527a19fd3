"""Shows long work: bars on a terminal, plain lines in a log file."""

from collections.abc import Callable

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from resnet_flax.errors import printable
from resnet_flax.runtime.output import in_notebook

_SPEED_SECONDS = 1e9  # The time left goes by all records of this process.


class RunProgress:
    """Shows steps, loss, error, images/s and time left, of one run after another.

    A terminal shows a bar, or `view`, below the printed lines. Elsewhere each update prints a line.
    Use as a context manager.
    """

    def __init__(
        self,
        *,
        quiet: bool = False,
        view: Callable[[Console], RenderableType] | None = None,
    ):
        """
        - `quiet`: shows nothing. True in all processes but the first.
        - `view`: returns what a terminal shows instead of the bar; called every second.
        """
        self.console = Console(
            highlight=False,
            emoji=False,
            soft_wrap=True,
            quiet=quiet,
            # A notebook says that it is a terminal, but it cannot draw over what it has shown.
            force_terminal=False if in_notebook() else None,
        )
        self._view = view
        self._name = self._values = ""
        self._steps = 0
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=self.console,
            # By default, rich forgets what is 30 s old. Records may be an hour apart.
            speed_estimate_period=_SPEED_SECONDS,
        )
        self._live = Live(
            console=self.console,
            get_renderable=self._render,
            refresh_per_second=1 if view else 4,
        )

    def _render(self) -> RenderableType:
        return self._view(self.console) if self._view else Group(self._bar, self._values)

    def __enter__(self) -> "RunProgress":
        if self.console.is_terminal and not self.console.quiet:
            self._live.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._live.stop()

    def start(self, name: str, step: int, steps: int) -> None:
        """Starts the display of a run of `steps` steps, at `step`."""
        for task in self._bar.task_ids:
            self._bar.remove_task(task)
        self._name, self._steps, self._values = name, steps, ""
        self._bar.add_task(name, total=steps, completed=step)

    def update(self, step: int, loss: float, error: float, images_per_second: float) -> None:
        """Shows a train record. `error` is a fraction."""
        values = f"loss {loss:.4f}  error {error:6.2%}  {images_per_second:,.0f} images/s"
        if self.console.is_terminal:
            self._bar.update(self._bar.task_ids[0], completed=step)
            self._values = values
        else:
            self.say(f"{self._name}  step {step}/{self._steps}  {values}")

    def say(self, line: str) -> None:
        """Prints a line that stays on the screen."""
        self.console.print(printable(line), markup=False)
