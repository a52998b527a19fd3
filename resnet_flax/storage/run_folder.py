"""A run's folder: the only file that knows its JSON files. No JAX, so that a report needs none.

config.json       the run's identity: its resolved config, but for the folder of its data
environment.json  versions and devices, one object an attempt
status.json       {"state", "step", "attempt", "error", "updated", "seconds", "records", "sha256"}
lock.json         who writes here; in a bucket below lock/; see lock_stores.py
metrics.jsonl     one object a line: train records and evaluation records
checkpoints/      see checkpoints.py
tensorboard/      event files
"""

import contextlib
import functools
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Concatenate, Literal, NamedTuple, ParamSpec

import pydantic

from resnet_flax.errors import GOES_ON, FaultError, UserError
from resnet_flax.storage import filesystem
from resnet_flax.storage.filesystem import AnyPath
from resnet_flax.storage.lock import FolderLock

P = ParamSpec("P")
# The most bytes that are read of each.
LARGEST = {
    "config.json": 2**20,
    "environment.json": 2**24,
    "status.json": 2**20,
    "metrics.jsonl": 2**28,
}
FILES = tuple(LARGEST)
# All that a run writes to its folder.
OWN = (*FILES, "lock.json", ".lock", "checkpoints", "tensorboard", "diagnostics")
State = Literal["running", "finished", "diverged", "preempted", "failed"]
DONE: tuple[State, ...] = ("finished", "diverged")


class Status(NamedTuple):
    """Where a run stands.

    - `step`: the last one saved; once it has finished or diverged, the last one taken.
    - `attempt`: counts the processes that worked on it, from 1.
    - `updated`: UTC, ISO 8601.
    - `seconds`: that all attempts took up to then, less what a kill cut off since the last of these
      files was written; None if an older version did not count.
    - `records`, `sha256`: how many lines metrics.jsonl had when the run finished or diverged, and
      their digest; None before, and if an older version wrote it.

    The last four are set when it is written.
    """

    state: State
    step: int = 0
    attempt: int = 1
    error: str | None = None
    updated: str = ""
    seconds: Annotated[float, pydantic.Field(ge=0, allow_inf_nan=False)] | None = None
    records: Annotated[int, pydantic.Field(ge=0, lt=2**53)] | None = None
    sha256: str | None = None


class _Record(pydantic.BaseModel):
    """What readers rely on in a line of metrics.jsonl."""

    model_config = pydantic.ConfigDict(extra="allow", strict=True)
    step: Annotated[int, pydantic.Field(ge=0, lt=2**53)]
    split: str = ""
    loss: float | None = None
    error: Annotated[float, pydantic.Field(ge=0, le=1)] | None = None
    # What is no such integer becomes a float.
    __pydantic_extra__: dict[
        str, Annotated[int, pydantic.Field(gt=-(2**53), lt=2**53)] | float | str | None
    ]


class _Environment(pydantic.BaseModel):
    """What readers rely on in an entry of environment.json."""

    parameters: Annotated[int, pydantic.Field(ge=0, lt=2**53)] | None = None


RUNNING = "running"


def series_of(record: Mapping[str, Any]) -> str:
    """The series that a record belongs to: a split that was evaluated, or `RUNNING`.

    Records of the series `RUNNING` have means over the steps since the one before, on augmented
    batches in train mode.
    """
    return record.get("split") or RUNNING


def parse_record(line: str | bytes) -> dict[str, Any]:
    """A line of metrics.jsonl. Raises ValueError if it is no record."""
    try:
        return _Record.model_validate_json(line).model_dump(exclude_unset=True)
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def _read_as(kind: Any, path: AnyPath) -> Any:
    """The JSON of a file as a type. Raises UserError if it is of another."""
    value = filesystem.read_json(path, LARGEST[path.name])
    if kind is Status and isinstance(value, dict):
        value = [value.get(name) for name in Status._fields]
    try:
        return pydantic.TypeAdapter(kind).validate_python(value)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "its content"
        raise UserError(f"Cannot use {path}: {field}: {first['msg']}.") from error


def identity(config: dict[str, Any]) -> dict[str, Any]:
    """What a run is: its config, in JSON types, without the folder that its data lies in.

    That folder differs between machines, and moves.
    """
    data = config.get("data")
    if not isinstance(data, dict):
        return config
    return {**config, "data": {name: data[name] for name in data if name != "data_dir"}}


def differing_fields(old: Any, new: Any, prefix: str = "") -> Iterator[str]:
    """The dotted names of the fields in which two JSON values differ, with both values."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from differing_fields(
                old.get(key, "absent"), new.get(key, "absent"), f"{prefix}.{key}" if prefix else key
            )
    elif old != new:
        yield f"{prefix} ({old!r} there, {new!r} here)"


def _write(method: Callable[Concatenate["RunFolder", P], None]) -> Callable[..., None]:
    """A method that writes: in the first process alone, as long as the folder is its own."""

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


class RunFolder:
    """The records of one run. Errors are fractions; a number that is not finite becomes null."""

    def __init__(self, path: str | os.PathLike[str], *, writes: bool = True):
        """Touches nothing; `path` may be in a bucket, a relative one is made absolute.

        `writes`: false in all but the first of several processes, whose writes then do nothing.
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
        """Whether there is a run of this identity. Raises UserError if there is one of another.

        `resolve` gives an older config the fields that came later.
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
                " workdir, or give the same config."
            )
        return True

    @contextlib.contextmanager
    def claim(self, config: dict[str, Any], say: Callable[[str], None]) -> Iterator[None]:
        """Makes the folder, or goes on in it, as its one writer until the context ends.

        `say` hears of waiting. Raises TryAgainError while another process writes here.
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
            for left in self.path.glob(f".{name}.*.new"):  # By a crash.
                left.unlink()
        if not self.config_file.exists():
            filesystem.write_text(self.config_file, filesystem.pretty_json(identity(config)))
        before = self.status()
        self._earlier, self._began = before.seconds if before else 0.0, time.monotonic()

    def held(self) -> contextlib.AbstractContextManager[None]:
        """To write in. Raises FaultError if another process has become this folder's writer."""
        assert self._lock is not None, "Writing takes `claim`."
        return self._lock.held()

    def config(self) -> dict[str, Any]:
        """The run's identity. Raises UserError if this is not a run's folder."""
        return identity(_read_as(dict[str, Any], self.config_file))

    def config_digest(self) -> str:
        """SHA-256 of the run's identity, as the file has it: without what later versions add."""
        text = json.dumps(self.config(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def status(self) -> Status | None:
        """None before the first attempt."""
        return _read_as(Status, self.status_file) if filesystem.exists(self.status_file) else None

    @_write
    def write_status(self, status: Status) -> None:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        seconds = None
        if self._earlier is not None:
            seconds = round(self._earlier + time.monotonic() - self._began, 1)
        records, sha256 = self._counted() if status.state in DONE else (None, None)
        status = status._replace(updated=now, seconds=seconds, records=records, sha256=sha256)
        text = filesystem.pretty_json(status._asdict())
        # What befell the run shall be known, also on a full disk.
        filesystem.write_text_anyway(self.status_file, text)

    def _counted(self) -> tuple[int, str]:
        """The number of records, and their digest."""
        content = self._metrics_content()
        return content.count(b"\n"), hashlib.sha256(content).hexdigest()

    def changed(self, status: Status) -> str | None:
        """What to say of records that are not those that a run ended with; None if they are."""
        count, sha256 = self._counted()
        if status.sha256 in (None, sha256):
            return None
        now = "as many others" if count == status.records else f"{count}"
        return (
            f"{self.metrics_file} is not what it was when this run ended: {status.records} records"
            f" then, {now} now. Put back a copy of it, or delete {self.path} to train it again."
        )

    def wall_seconds(self, status: Status | None) -> float | None:
        """What a finished run of this status took; None where the records do not say."""
        if status is None or status.state != "finished":
            return None
        if status.seconds is not None or status.attempt > 1:
            return status.seconds
        try:  # Of an older version.
            began = datetime.fromisoformat(self.environments()[-1]["started"])
            seconds = (datetime.fromisoformat(status.updated) - began).total_seconds()
        except (LookupError, TypeError, ValueError):
            return None
        return seconds if seconds >= 0 else None  # The clock may have been set back.

    def environments(self) -> list[dict[str, Any]]:
        """One entry an attempt."""
        path = self.path / "environment.json"
        if not filesystem.exists(path):
            return []
        _read_as(list[_Environment], path)
        return filesystem.read_json(path, LARGEST[path.name])

    @_write
    def add_environment(self, environment: dict[str, Any]) -> None:
        path = self.path / "environment.json"
        filesystem.write_text(path, filesystem.pretty_json([*self.environments(), environment]))

    @_write
    def append_metrics(self, record: dict[str, Any]) -> None:
        """Appends one record; on disk when this returns."""
        self._lines.append(json.dumps(filesystem.finite(record), allow_nan=False))

    def metrics(self) -> list[dict[str, Any]]:
        """All records in order. A last line cut off by a crash is left out.

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
        # After the last newline stands nothing, or a line that a crash cut off.
        lines = self._metrics_content().decode(errors="replace").split("\n")[:-1]
        return [(line, self._record(number, line)) for number, line in enumerate(lines, 1)]

    def _record(self, number: int, line: str) -> dict[str, Any]:
        try:
            return parse_record(line)
        except ValueError as error:
            raise UserError(
                f"{self.metrics_file}, line {number}: expected a JSON object with a step, values"
                f" numbers, null or text, got {line[:60]!r}. Delete the line to go on without it."
            ) from error

    @_write
    def drop_metrics_after(self, step: int) -> None:
        """Forgets what a resumed run will record again, so that no step appears twice."""
        kept = [line for line, record in self._metrics_lines() if record["step"] <= step]
        self._lines.replace("".join(f"{line}\n" for line in kept))
