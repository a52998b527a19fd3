"""Reads TensorBoard's event files: records of a length, its sum, the event, its sum."""

import struct

from tensorboardX.proto.event_pb2 import Event


def read(folder):
    """All events below a folder."""
    for path in sorted(folder.glob("events*")):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            yield Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]


def read_values(folder):
    """(step, tag) -> value."""
    return {(event.step, v.tag): v for event in read(folder) for v in event.summary.value}
