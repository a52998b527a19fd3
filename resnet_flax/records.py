"""A run's folder: the only file that knows its JSON files. No JAX, so that a report needs none.

config.json       the resolved config
environment.json  versions and devices, one object an attempt
status.json       {"state", "step", "attempt", "error", "updated"}
metrics.jsonl     one object a line: train records and evaluation records
checkpoints/      see checkpoints.py
tensorboard/      event files
"""

import json
import math
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pydantic

from resnet_flax.errors import UserError

State = Literal["running", "finished", "diverged", "preempted", "failed"]


class Status(NamedTuple):
    """Where a run stands; `attempt` counts the processes that worked on it, from 1."""

    state: State
    step: int = 0
    attempt: int = 1
    error: str | None = None
    updated: str = ""  # UTC, ISO 8601; set when written.


def write_json(path: Path, value: Any) -> None:
    """Replaces a file at once: a reader, or a crash, sees the old or the new one, never a part."""
    _replace(path, json.dumps(_finite(value), indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Raises UserError if the file is absent or is not JSON."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UserError(f"Expected a file {path}: is {path.parent} a run's folder?") from error
    except (OSError, ValueError) as error:
        raise UserError(f"Expected JSON in {path}, got: {error}.") from error


def _read_as(kind: Any, path: Path) -> Any:
    """The JSON of a file as a type. Raises UserError if it is of another."""
    value = read_json(path)
    if kind is Status and isinstance(value, dict):
        value = [value.get(name) for name in Status._fields]
    try:
        return pydantic.TypeAdapter(kind).validate_python(value)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "its content"
        raise UserError(f"Cannot use {path}: {field}: {first['msg']}.") from error


def differing_fields(old: Any, new: Any, prefix: str = "") -> Iterator[str]:
    """The dotted names of the fields in which two JSON values differ, with both values."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from differing_fields(
                old.get(key, "absent"), new.get(key, "absent"), f"{prefix}.{key}" if prefix else key
            )
    elif old != new:
        yield f"{prefix} ({old!r} there, {new!r} here)"


class RunFolder:
    """The records of one run. Errors are fractions; a number that is not finite becomes null."""

    def __init__(self, path: str | os.PathLike):
        """Touches nothing; relative paths are made absolute."""
        self.path = Path(path).expanduser().absolute()
        self.config_file = self.path / "config.json"
        self.metrics_file = self.path / "metrics.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.tensorboard = self.path / "tensorboard"

    @property
    def name(self) -> str:
        return self.path.name

    def check(self, config: dict[str, Any]) -> bool:
        """Whether there is a run of this config. Raises UserError if there is one of another."""
        try:
            if not self.config_file.exists():
                return False
        except OSError as error:
            raise UserError(f"Cannot use workdir {self.path}: {error.strerror}.") from error
        differences = "; ".join(differing_fields(self.config(), config))
        if differences:
            raise UserError(
                f"{self.path} holds a run with another config: {differences}. Choose another"
                " workdir, or give the same config."
            )
        return True

    def claim(self, config: dict[str, Any]) -> None:
        """Makes the folder, or goes on in it. Raises UserError if it is another config's."""
        try:
            if not self.check(config):
                self.path.mkdir(parents=True, exist_ok=True)
                write_json(self.config_file, config)
        except OSError as error:
            raise UserError(f"Cannot write to workdir {self.path}: {error.strerror}.") from error

    def config(self) -> dict[str, Any]:
        """The resolved config. Raises UserError if this is not a run's folder."""
        return _read_as(dict[str, Any], self.config_file)

    def status(self) -> Status | None:
        """None before the first attempt."""
        path = self.path / "status.json"
        return _read_as(Status, path) if path.exists() else None

    def write_status(self, status: Status) -> None:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        write_json(self.path / "status.json", status._replace(updated=now)._asdict())

    def environments(self) -> list[dict[str, Any]]:
        """One entry an attempt."""
        path = self.path / "environment.json"
        return _read_as(list[dict[str, Any]], path) if path.exists() else []

    def add_environment(self, environment: dict[str, Any]) -> None:
        write_json(self.path / "environment.json", [*self.environments(), environment])

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Appends one record; on disk when this returns."""
        with self.metrics_file.open("a") as file:
            file.write(json.dumps(_finite(record), allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def metrics(self) -> list[dict[str, Any]]:
        """All records in order. A last line cut off by a crash is left out.

        Raises UserError if any other line is not a record.
        """
        if not self.metrics_file.exists():
            return []
        try:
            *lines, rest = self.metrics_file.read_text(errors="replace").split("\n")
        except OSError as error:
            raise UserError(f"Cannot read {self.metrics_file}: {error.strerror}.") from error
        records = [self._record(number, line) for number, line in enumerate(lines, 1)]
        del rest  # Empty, or a line that a crash cut off: a whole one ends in a newline.
        return records

    def _record(self, number: int, line: str) -> dict[str, Any]:
        try:
            record = json.loads(line)
            if isinstance(record.get("step"), int):
                return record
        except (ValueError, AttributeError):
            pass
        raise UserError(
            f"{self.metrics_file}, line {number}: expected a JSON object with a step, got"
            f" {line[:60]!r}. Delete the line to go on without it."
        )

    def drop_metrics_after(self, step: int) -> None:
        """Forgets what a resumed run will record again, so that no step appears twice."""
        kept = [record for record in self.metrics() if record["step"] <= step]
        if self.metrics_file.exists():
            _replace(self.metrics_file, "".join(json.dumps(record) + "\n" for record in kept))


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return value


def _replace(path: Path, text: str) -> None:
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    with new.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
