"""Makes a command go on if its output has no reader or cannot be written. Knows notebooks."""

import io
import os
import select
import sys


class _Unheard(io.FileIO):
    """A stream that drops output which it cannot write."""

    def write(self, data):  # type: ignore[no-untyped-def]
        try:
            return super().write(data)
        except OSError:  # A closed pipe, a full disk, a terminal that is gone.
            return memoryview(data).nbytes


def keep_going() -> None:
    """From now on, a closed or full stdout or stderr raises no error."""
    _fill_closed()
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # Closed before the start: Python then prints nothing.
            continue
        raw = _Unheard(stream.fileno(), "w", closefd=False)
        text = io.TextIOWrapper(
            raw if stream.write_through else io.BufferedWriter(raw),
            encoding=stream.encoding,
            errors="replace",  # A terminal without ± must not end a command.
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,  # PYTHONUNBUFFERED sets this.
        )
        stream.flush()
        setattr(sys, name, text)


def _fill_closed() -> None:
    """Opens streams that were closed at the start. Else the next open file would get the output."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def has_no_reader() -> bool:
    """Whether stdout is a pipe whose reader has gone."""
    if sys.stdout is None:
        return False
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def in_notebook() -> bool:
    """Whether this process is a notebook's kernel."""
    return "JPY_PARENT_PID" in os.environ
