"""TensorBoard's event files. The caller's thread writes them, so it gets the error of a full disk.

In a bucket, the event file is written with each checkpoint. If a run is killed, TensorBoard may
lack the values after the last checkpoint. The run's records still have them.
"""

import json
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.summary import histogram_raw, scalar, text

from resnet_flax.storage.filesystem import AnyPath, LocalFolder

BUCKETS = 30


class EventFile:
    """The event file of one attempt."""

    def __init__(self, folder: AnyPath, attempt: int, step: int):
        """Makes a missing folder. Readers then ignore earlier attempts' values after `step`."""
        self._folder = LocalFolder(folder)
        self._writer = EventsWriter(
            str(self._folder.path / "events"), filename_suffix=f".{attempt}"
        )
        self._write(Event(step=step + 1, session_log=SessionLog(status=SessionLog.START)))

    def add_scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Adds numbers: tag -> value."""
        for tag, value in values.items():
            self._write(Event(step=step, summary=scalar(tag, value)))
        self._writer.flush()

    def add_config(self, step: int, config: dict[str, Any]) -> None:
        """Adds the config as text, with the tag `config`."""
        block = f"```\n{json.dumps(config, indent=2)}\n```"
        self._write(Event(step=step, summary=text("config", block)))
        self._publish()

    def add_weights(self, step: int, params: Mapping[str, Any]) -> None:
        """Adds a histogram of each layer's kernel. `params`: nested host arrays.

        Tags are names such as `weights/stage1_block2/conv1`. Values that are not finite are left
        out.
        """
        for name, kernel in _kernels(params, "weights"):
            finite = kernel[np.isfinite(kernel)]
            if finite.size:
                self._write(Event(step=step, summary=_histogram(name, finite)))
        self._publish()

    def close(self) -> None:
        self._writer.close()
        self._folder.close()

    def _publish(self) -> None:
        self._writer.flush()
        self._folder.publish()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._writer.write_event(event)


def _kernels(params: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, np.ndarray]]:
    for name, value in params.items():
        if isinstance(value, Mapping):
            yield from _kernels(value, f"{prefix}/{name}")
        elif name == "kernel":
            yield prefix, value


def _histogram(name: str, values: np.ndarray) -> Summary:
    # Not tensorboardX's own: its float64 dot product takes four times as long as all of this.
    values = values.astype(np.float64)  # In float32, edges between near values coincide.
    extent = low, high = float(values.min()), float(values.max())
    beyond = abs(low) or 1.0 if low == high else 0.0
    counts, edges = np.histogram(values, BUCKETS, (low - beyond, high + beyond))
    total, squares = values.sum(), np.square(values).sum()
    return histogram_raw(
        name, *extent, values.size, total, squares, edges[1:].tolist(), counts.tolist()
    )
