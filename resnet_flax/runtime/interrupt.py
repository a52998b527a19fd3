"""Turns SIGINT, SIGTERM and SIGHUP into requests, so that a run stops where it can resume."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType

import jax
from jax.experimental import multihost_utils

from resnet_flax.runtime.output import in_notebook

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SAME_REQUEST_SECONDS = 1.0
"""Signals within this time after the first are the same request. For example, timeout(1) sends
SIGTERM to the process and to its group, and a closing terminal sends several SIGHUP."""
_SHOW_CURSOR = b"\x1b[?25h"


class StopRequest:
    """A context in which the first signal asks to stop, and a second one ends the process at once.

    A second signal counts if it comes `SAME_REQUEST_SECONDS` or more after the first and is not
    SIGHUP. If SIGHUP is ignored, as under nohup, it has no effect. In a notebook, a second signal
    ends the cell, not the process, which holds the user's variables.

    With several processes, a signal to one of them stops all at the same step. Outside the main
    thread, signals are not handled, except SIGTERM with several processes.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        """The reason to stop, after `reached` returned True."""
        self._signal: str | None = None
        self._is_forced = False
        self._questions = 0
        self._previous: dict[int, object] = {}
        self._pipe, self._previous_fd = (-1, -1), -1
        self._main = 0

    def reached(self) -> bool:
        """Whether to stop here. Every process must call this, and equally often."""
        self._questions += 1
        if jax.process_count() == 1:
            self.received = self._signal
        elif multihost_utils.reached_preemption_sync_point(self._questions):
            self.received = "a signal to one of the processes"
            if self._previous:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
        return self.received is not None

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            # Another thread receives the signals: the main one may be in a long computation.
            self._main = threading.get_ident()
            self._pipe = os.pipe()
            os.set_blocking(self._pipe[1], False)
            self._previous_fd = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
            for number in SIGNALS:
                # jax.distributed handles SIGTERM. A handler of ours would replace it.
                if number == signal.SIGTERM and jax.process_count() > 1:
                    continue
                if not (number == signal.SIGHUP and _is_ignored(number)):  # As under nohup.
                    self._previous[number] = signal.signal(number, self._note)
            threading.Thread(target=self._listen, daemon=True, name="signals").start()
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._is_forced:
            raise KeyboardInterrupt
        self._signal = signal.Signals(number).name

    def _listen(self) -> None:
        first = None
        while number := int.from_bytes(os.read(self._pipe[0], 1)):
            if number not in self._previous or self._is_forced:
                continue
            now = time.monotonic()
            if first is None:
                first = now
                if jax.process_count() > 1:
                    os.kill(os.getpid(), signal.SIGTERM)
            elif _is_another(number, first, now):
                if in_notebook():
                    self._is_forced = True
                    # Calls `_note` in the main thread, also if that one has already seen the signal
                    # and waits again.
                    signal.pthread_kill(self._main, number)
                    continue
                os.write(2, _SHOW_CURSOR if os.isatty(2) else b"")
                os._exit(128 + number)
        os.close(self._pipe[0])

    def __exit__(self, *exc_info: object) -> None:
        if self._previous:
            for number, handler in self._previous.items():
                signal.signal(number, handler)  # type: ignore[arg-type]
            signal.set_wakeup_fd(self._previous_fd)
            os.close(self._pipe[1])  # Ends the thread.
            self._previous = {}


def end_on(*numbers: int) -> None:
    """From now on, these signals end the process, by SystemExit with status 128 + number.

    So its `finally` blocks run. Signals of the same request, as for `StopRequest`, do not cut them
    short; another one does.
    """
    first: list[float] = []

    def end(number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not first or _is_another(number, first[0], now):
            first.append(now)
            sys.exit(128 + number)

    for number in numbers:
        if not _is_ignored(number):  # As under nohup.
            signal.signal(number, end)


def _is_another(number: int, first: float, now: float) -> bool:
    """Whether a signal is not of the same request as the first one."""
    return now - first >= SAME_REQUEST_SECONDS and number != signal.SIGHUP


@contextlib.contextmanager
def held() -> Iterator[None]:
    """A context whose end the signals wait for. So none comes while a process is being started.

    Otherwise nobody would know of that process, and it would stay. It gets signals as usual. Only
    the main thread may call this.
    """
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)

    before = {each: signal.signal(each, note) for each in SIGNALS if not _is_ignored(each)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])


def _is_ignored(number: int) -> bool:
    return signal.getsignal(number) == signal.SIG_IGN
