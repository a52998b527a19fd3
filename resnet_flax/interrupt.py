"""Turns the first SIGINT or SIGTERM into a flag, so that a run stops where it can resume."""

import signal
import threading
from types import FrameType


class StopRequest:
    """A context in which the first signal sets `received`, and a second one acts at once.

    Signals reach the main thread alone; in another thread this does nothing.
    """

    def __init__(self) -> None:
        self.received: str | None = None  # The name of the signal.
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number).name
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._previous = {}

    def __exit__(self, *exc_info: object) -> None:
        self._restore()
