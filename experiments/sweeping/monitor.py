"""Reads the state of a sweep's runs from their records. It needs no JAX and writes nothing.

It can be called every few seconds, since it reads only new records. Damaged files, or files that
vanish while it reads them, raise no error.
"""

import math
import statistics
import threading
from collections.abc import Iterable, Mapping
from typing import Any

from experiments.sweeping import estimate
from experiments.sweeping.estimate import Timed
from resnet_flax.errors import UserError, printable
from resnet_flax.storage import filesystem, records
from resnet_flax.storage.filesystem import AnyPath
from resnet_flax.storage.lock import Heartbeat
from resnet_flax.storage.records import DONE, LARGEST, RUNNING, Status, series_of
from resnet_flax.storage.run_folder import RunFolder
from resnet_flax.storage.sweep_folder import GridPoint

ENDED = ("finished", "diverged", "failed")


class RunMonitor:
    """Reads the state of one run."""

    def __init__(self, folder: RunFolder, point: GridPoint):
        self.point, self._folder = point, folder
        self.state = "not begun"
        """A `records.State`, "not begun", "unreadable" or "interrupted". The last one means: the
        status says "running", but no process is at work on the run."""
        self.without_status = "not begun"
        """The state if there is no status file. A sweep sets it if its own run failed early."""
        self.given_up = False
        """Whether a sweep sets it: the run failed, and this sweep does not train it again."""
        self.status: Status | None = None
        self.last: dict[str, dict[str, Any]] = {}
        """The last record of each series; see `series_of`."""
        self.seconds: float | None = None
        """Seconds that it took, if it finished in one attempt."""
        self._rates: list[float] = []
        self._heartbeat = Heartbeat(folder.path)
        self._seen: tuple[int | str, ...] = ()
        self._said: set[tuple[int, str]] = set()
        self._place = filesystem.ReadPosition()

    @property
    def step(self) -> int:
        """The last recorded step."""
        saved = self.status.step if self.status else 0
        return max([saved, *(record["step"] for record in self.last.values())])

    @property
    def work_left(self) -> int:
        """The part of the point's `work` that a sweep will do. The next one trains failed runs."""
        is_over = self.given_up or self.state in DONE
        steps = 0 if is_over else max(0, self.point.steps - self.step)
        return self.point._replace(steps=steps).work

    @property
    def error(self) -> float | None:
        """Error on the clean training split if it is known, else the running error; a fraction."""
        return self._shown("error")

    @property
    def loss(self) -> float | None:
        """Mean loss, in nats, of the images that `error` counts."""
        return self._shown("loss")

    @property
    def images_per_second(self) -> float | None:
        """The last measured rate, above 0."""
        rate = number(self.last.get(RUNNING, {}), "images_per_second")
        return rate if rate and rate > 0 else None

    @property
    def pace(self) -> float | None:
        """Images a second, the median after the first record. The first includes compilation."""
        return statistics.median(self._rates[1:]) if len(self._rates) > 1 else None

    @property
    def seconds_left(self) -> float | None:
        """None unless the run is running and its pace is known."""
        if self.state != "running" or self.pace is None:
            return None
        return self.work_left / self.point.multiply_adds / self.pace

    @property
    def timed(self) -> Timed:
        """What an estimate of the time left needs."""
        point, pace = self.point, self.pace
        speed = pace * point.multiply_adds if pace else None
        network = (point.group, point.depth)
        return Timed(network, point.depth, point.work, self.work_left, speed, self.seconds)

    def _shown(self, metric: str) -> float | None:
        return number(self.last.get("train") or self.last.get(RUNNING, {}), metric)

    def refresh(self) -> list[str]:
        """Reads new records. Returns a line for each change of state and each evaluation."""
        before, self.state = self.state, self._read_state()
        # Read after the state: if the run has ended, these are all its records.
        new = self._read_metrics()
        evaluations = [record for record in new if "split" in record and self._is_new(record)]
        lines = [self._evaluation_line(record) for record in evaluations]
        return lines + ([self.state_line()] if self.state != before else [])

    def state_line(self) -> str:
        reason = self.status.error if self.status else None
        return self._line(self.step, self.state + (f": {printable(reason)}" if reason else ""))

    def _evaluation_line(self, record: Mapping[str, Any]) -> str:
        error, split = number(record, "error"), printable(record["split"])
        return self._line(
            record["step"], f"{split} error {'?' if error is None else f'{error:.2%}'}"
        )

    def _line(self, step: int, what: str) -> str:
        return f"{self.point.name}  step {step}/{self.point.steps}  {what}"

    def _is_new(self, evaluation: Mapping[str, Any]) -> bool:
        """Whether it was not seen before. A resumed run keeps or repeats old evaluations."""
        key = (evaluation["step"], evaluation["split"])
        known = key in self._said
        self._said.add(key)
        return not known

    def _read_state(self) -> str:
        state = self._read_status()
        if state == "running" and not self._heartbeat.is_alive():
            state = self._read_status()  # It may have ended since the first read.
            return "interrupted" if state == "running" else state
        return state

    def _read_status(self) -> str:
        try:
            now = filesystem.identity(self._folder.status_file)
            if now != self._seen:
                self.status, self._seen = self._folder.status(), now
                once = self.status and self.status.attempt == 1
                self.seconds = self._folder.wall_seconds(self.status) if once else None
        except FileNotFoundError:
            self.status, self._seen = None, ()
        except (OSError, UserError):
            self._seen = ()
            return "unreadable"
        return self.status.state if self.status else self.without_status

    def _forget_metrics(self) -> None:
        self._place, self.last, self._rates = filesystem.ReadPosition(), {}, []

    def _read_metrics(self) -> list[dict[str, Any]]:
        """Reads the new records. Skips lines that are not records."""
        path = self._folder.metrics_file
        try:
            whole, place = filesystem.read_on(path, self._place, LARGEST[path.name])
        except FileNotFoundError:
            self._forget_metrics()
            return []
        except OSError:
            return []
        # A run that resumes replaces the file by a shorter one.
        anew = place.file != self._place.file or place.offset < self._place.offset
        self._place = place
        new = [record for line in whole.split(b"\n") if (record := _record(line))]
        # A new dict: another thread may be drawing the old one.
        known = {} if anew else self.last
        self.last = known | {series_of(record): record for record in new}
        rates = [number(record, "images_per_second") for record in new]
        self._rates = ([] if anew else self._rates) + [rate for rate in rates if rate and rate > 0]
        return new


class SweepMonitor:
    """Reads the state of a sweep's runs. Threads may share it."""

    def __init__(self, workdir: AnyPath, points: Iterable[GridPoint]):
        self.runs = [RunMonitor(RunFolder(workdir / point.name), point) for point in points]
        self._lock = threading.Lock()

    def refresh(self) -> list[str]:
        """Reads new records. Returns a line for each change of state and each evaluation."""
        with self._lock:
            return [line for run in self.runs for line in run.refresh()]

    @property
    def is_over(self) -> bool:
        return all(run.state in ENDED for run in self.runs)

    @property
    def work(self) -> int:
        return sum(run.point.work for run in self.runs)

    @property
    def work_left(self) -> int:
        return sum(run.work_left for run in self.runs)

    @property
    def seconds_left(self) -> float | None:
        """See `estimate.py`. Assumes that as many runs as now train at once."""
        left = estimate.seconds_left([run.timed for run in self.runs])
        at_once = max(1, sum(run.state == "running" for run in self.runs))
        return None if left is None else left / at_once


def number(record: Mapping[str, Any], metric: str) -> float | None:
    """The value of a metric; None if it is absent, not a number or not finite."""
    value = record.get(metric)
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        return records.parse_record(line)
    except ValueError:
        return None
