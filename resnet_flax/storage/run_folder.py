"""A run's folder: its single writer and its JSON files. No JAX, so that reports need none.

config.json       the run's identity: its resolved config without the folder of its data
environment.json  versions and devices; one object for each attempt
status.json       {"state", "step", "attempt", "error", "updated", "seconds", "records", "sha256"}
lock.json         the process that writes here; in a bucket, files below lock/; see lock_stores.py
metrics.jsonl     train records and evaluation records; one object on each line
checkpoints/      see checkpoints.py
tensorboard/      event files
"""

import contextlib
import functools
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, Concatenate, ParamSpec

from resnet_flax.errors import GOES_ON, FaultError, UserError
from resnet_flax.storage import filesystem
from resnet_flax.storage.lock import FolderLock
from resnet_flax.storage.records import (
    DONE,
    FILES,
    LARGEST,
    Environment,
    Status,
    checked,
    differing_fields,
    identity,
    parse_record,
    read_as,
)

P = ParamSpec("P")
# Everything that a run writes to its folder.
OWN = (*FILES, "lock.json", ".lock", "checkpoints", "tensorboard", "diagnostics")


def _write(method: Callable[Concatenate["RunFolder", P], None]) -> Callable[..., None]:
    """Lets a method write only in the first process, and only while it holds the folder's lock."""

    @functools.wraps(method)
    def checked(self: "RunFolder", *args: P.args, **kwargs: P.kwargs) -> None:
        if not self.writes:
            return
        try:
            with self.held():
                method(self, *args, **kwargs)
        except OSError as error:
            reason = f"Cannot write to {self.path}: {error.strerror}. {GOES_ON}"
            raise FaultError(reason) from error

    return checked


def _longer(old: dict[str, Any], new: dict[str, Any]) -> str:
    """A hint for those who want more steps of a run; "" for others."""
    if not new.get("steps", 0) > old.get("steps", 0):
        return ""
    return (
        " To train longer than the config said, begin a run with init_from: it takes parameters and"
        " BN statistics, but no momentum."
    )


class RunFolder:
    """The records of one run. Errors are fractions. Numbers that are not finite become null."""

    def __init__(self, path: str | os.PathLike[str], *, writes: bool = True):
        """Reads and writes nothing yet.

        - `path`: a folder on a disk or in a bucket. A relative path is made absolute.
        - `writes`: false in all processes but the first. Their writes then do nothing.
        """
        self.path = filesystem.path(path)
        self.config_file = self.path / "config.json"
        self.status_file = self.path / "status.json"
        self.metrics_file = self.path / "metrics.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.tensorboard = self.path / "tensorboard"
        self.writes = writes
        self._lock: FolderLock | None = None
        self._earlier: float | None = None  # Seconds of the attempts before this one.
        self._began = 0.0
        self._lines = filesystem.Lines(self.metrics_file)

    @property
    def name(self) -> str:
        return self.path.name

    def has_run(
        self, config: dict[str, Any], resolve: Callable[[dict[str, Any]], dict[str, Any]]
    ) -> bool:
        """Whether the folder has a run of this config. Raises UserError if its run has another one.

        `resolve`: adds newer fields to an older config.
        """
        if not filesystem.exists(self.config_file):
            return False
        try:
            old = resolve(self.config())
        except UserError as error:
            raise UserError(f"Cannot use {self.config_file}: {error}") from error
        differences = "; ".join(differing_fields(identity(old), identity(config)))
        if differences:
            raise UserError(
                f"{self.path} holds a run with another config: {differences}. Choose another"
                f" workdir, or give the same config.{_longer(old, config)}"
            )
        return True

    @contextlib.contextmanager
    def claim(self, config: dict[str, Any], say: Callable[[str], None]) -> Iterator[None]:
        """Makes this process the folder's only writer until the context ends.

        Makes the folder if it is missing. `say`: called with a line if this has to wait. Raises
        TryAgainError if another process writes here.
        """
        if not self.writes:
            yield
            return
        filesystem.refuse_links(self.path, *OWN)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = FolderLock(self.path)
            self._lock.acquire(say)
        except OSError as error:
            raise UserError(f"Cannot write to workdir {self.path}: {error.strerror}.") from error
        try:
            self._set_up(config)
            yield
        finally:
            self._lock.release()

    @_write
    def _set_up(self, config: dict[str, Any]) -> None:
        for name in FILES:
            for left in self.path.glob(f".{name}.*.new"):  # A crash left it.
                left.unlink()
        if not self.config_file.exists():
            filesystem.write_text(self.config_file, filesystem.pretty_json(identity(config)))
        before = self.status()
        self._earlier, self._began = before.seconds if before else 0.0, time.monotonic()

    def held(self) -> contextlib.AbstractContextManager[None]:
        """A context for each write. Raises FaultError if this process has lost the folder."""
        assert self._lock is not None, "Call `claim` before writing."
        return self._lock.held()

    def config(self) -> dict[str, Any]:
        """The run's identity. Raises UserError if this is not a run's folder."""
        if not filesystem.exists(self.config_file):
            if filesystem.exists(self.path / "sweep.json"):
                raise UserError(
                    f"Expected a run's folder, got a sweep's folder: {self.path}. Give the folder"
                    " of one of its runs."
                )
            raise UserError(
                f"Expected a run's folder, got {self.path}: it has no {self.config_file.name}. A"
                " run has one as soon as it begins."
            )
        return identity(read_as(dict[str, Any], self.config_file))

    def config_digest(self) -> str:
        """SHA-256 of the run's identity as the file has it, without fields of later versions."""
        text = json.dumps(self.config(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def status(self) -> Status | None:
        """Reads status.json. None before the first attempt."""
        return read_as(Status, self.status_file) if filesystem.exists(self.status_file) else None

    @_write
    def write_status(self, status: Status) -> None:
        """Writes status.json, and sets the last four fields of `status`."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        seconds = None
        if self._earlier is not None:
            seconds = round(self._earlier + time.monotonic() - self._began, 1)
        records, sha256 = self._counted() if status.state in DONE else (None, None)
        status = status._replace(updated=now, seconds=seconds, records=records, sha256=sha256)
        text = filesystem.pretty_json(status._asdict())
        # Even on a full disk the reason for a failure must be recorded.
        filesystem.write_text_anyway(self.status_file, text)

    def _counted(self) -> tuple[int, str]:
        """The number of records, and their digest."""
        content = self._metrics_content()
        return content.count(b"\n"), hashlib.sha256(content).hexdigest()

    def changed(self, status: Status) -> str | None:
        """A message if metrics.jsonl has changed since the run ended, or None."""
        if status.sha256 is None:  # It has not ended, or an older version did not record it.
            return None
        count, sha256 = self._counted()
        if status.sha256 == sha256:
            return None
        now = "as many others" if count == status.records else f"{count}"
        return (
            f"{self.metrics_file} has changed since this run ended: {status.records} records"
            f" then, {now} now. Put back a copy of it, or delete {self.path} to train again."
        )

    def wall_seconds(self, status: Status | None) -> float | None:
        """The time that a finished run took, in seconds. None if the records do not say."""
        if status is None or status.state != "finished":
            return None
        if status.seconds is not None or status.attempt > 1:
            return status.seconds
        try:  # Records of an older version.
            began = datetime.fromisoformat(self.environments()[-1]["started"])
            seconds = (datetime.fromisoformat(status.updated) - began).total_seconds()
        except (LookupError, TypeError, ValueError):
            return None
        return seconds if seconds >= 0 else None  # Somebody may have set the clock back.

    def images(self) -> dict[str, Any]:
        """The fingerprints of both splits, as the last attempt recorded them. Empty: none did.

        Attempts before the first save do not count: a later one may have had other images.
        """
        recorded = (attempt.get("images") for attempt in reversed(self.environments()))
        return next((images for images in recorded if images), {})

    def environments(self) -> list[dict[str, Any]]:
        """Reads environment.json: one entry for each attempt."""
        path = self.path / "environment.json"
        if not filesystem.exists(path):
            return []
        entries: list[dict[str, Any]] = filesystem.read_json(path, LARGEST[path.name])
        checked(list[Environment], entries, path)
        return entries

    @_write
    def add_environment(self, environment: dict[str, Any]) -> None:
        path = self.path / "environment.json"
        filesystem.write_text(path, filesystem.pretty_json([*self.environments(), environment]))

    @_write
    def append_metrics(self, record: dict[str, Any]) -> None:
        """Appends one record. It is on disk when this returns."""
        self._lines.append(json.dumps(filesystem.finite(record), allow_nan=False))

    def metrics(self) -> list[dict[str, Any]]:
        """Reads all records in order, without a last line that a crash cut off.

        Raises UserError if any other line is not a record.
        """
        return [record for _, record in self._metrics_lines()]

    def _metrics_content(self) -> bytes:
        try:
            return filesystem.read_bytes(self.metrics_file, LARGEST[self.metrics_file.name])
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise UserError(f"Cannot read {self.metrics_file}: {error.strerror}.") from error

    def _metrics_lines(self) -> list[tuple[str, dict[str, Any]]]:
        # After the last newline there is nothing, or a line that a crash cut off.
        lines = self._metrics_content().decode(errors="replace").split("\n")[:-1]
        return [(line, self._record(number, line)) for number, line in enumerate(lines, 1)]

    def _record(self, number: int, line: str) -> dict[str, Any]:
        try:
            return parse_record(line)
        except ValueError as error:
            raise UserError(
                f"{self.metrics_file}, line {number}: expected a JSON object with a step and"
                f" numbers, text or null, got {line[:60]!r}. Delete the line to go on without it."
            ) from error

    @_write
    def drop_metrics_after(self, step: int) -> None:
        """Deletes the records after a step. A resumed run will record them again."""
        kept = [line for line, record in self._metrics_lines() if record["step"] <= step]
        self._lines.replace("".join(f"{line}\n" for line in kept))
