"""TensorBoard's event files, written in the caller's thread, so that a full disk is its error."""

import time
from collections.abc import Mapping
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar


class EventFile:
    """One attempt's scalars."""

    def __init__(self, folder: Path, attempt: int, step: int):
        """Makes the folder if need be; readers forget what earlier attempts wrote past `step`."""
        folder.mkdir(exist_ok=True)
        self._writer = EventsWriter(str(folder / "events"), filename_suffix=f".{attempt}")
        self._write(Event(step=step + 1, session_log=SessionLog(status=SessionLog.START)))

    def add_scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Tag -> value."""
        for tag, value in values.items():
            self._write(Event(step=step, summary=scalar(tag, value)))
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._writer.write_event(event)
