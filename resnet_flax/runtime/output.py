"""What a command prints ends nothing, also where nobody reads it or it cannot be written."""

import io
import os
import select
import sys


class _Unheard(io.FileIO):
    """A stream of which what cannot be written is lost."""

    def write(self, data):  # type: ignore[no-untyped-def]
        try:
            return super().write(data)
        except OSError:  # A closed pipe, a full disk, a terminal that is gone.
            return memoryview(data).nbytes


def keep_going() -> None:
    """From here on a stdout or stderr that is closed or full is no error."""
    _fill_closed()
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # Closed from the beginning: Python prints nothing then.
            continue
        raw = _Unheard(stream.fileno(), "w", closefd=False)
        text = io.TextIOWrapper(
            raw if stream.write_through else io.BufferedWriter(raw),
            encoding=stream.encoding,
            errors="replace",  # Where there is no ±, a command still goes on.
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,  # As PYTHONUNBUFFERED asks for.
        )
        stream.flush()
        setattr(sys, name, text)


def _fill_closed() -> None:
    """Opens what was closed from the beginning, or the next file would get what is printed."""
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
