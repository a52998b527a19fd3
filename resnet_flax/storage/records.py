"""Types of a run's records, which check the JSON files as they are read. No JAX."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, NamedTuple

import pydantic

from resnet_flax.errors import UserError
from resnet_flax.storage import filesystem
from resnet_flax.storage.filesystem import AnyPath

# The largest size, in bytes, at which each file is still read.
LARGEST = {
    "config.json": 2**20,
    "environment.json": 2**24,
    "status.json": 2**20,
    "metrics.jsonl": 2**28,
}
FILES = tuple(LARGEST)
State = Literal["running", "finished", "diverged", "preempted", "failed"]
DONE: tuple[State, ...] = ("finished", "diverged")


class Status(NamedTuple):
    """Where a run stands.

    - `step`: the last saved step. After the run finished or diverged: the last step taken.
    - `attempt`: the number of the attempt, from 1.
    - `updated`: the time of writing, UTC, ISO 8601.
    - `seconds`: the time of all attempts until then. After a kill, the time since status.json was
      last written is missing. None if an older version did not count.
    - `records`, `sha256`: number and digest of the lines of metrics.jsonl when the run finished or
      diverged. None before that, and in files of older versions.

    `write_status` sets the last four.
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
    """The fields of a line of metrics.jsonl that readers rely on."""

    model_config = pydantic.ConfigDict(extra="allow", strict=True)
    step: Annotated[int, pydantic.Field(ge=0, lt=2**53)]
    split: str = ""
    loss: float | None = None
    error: Annotated[float, pydantic.Field(ge=0, le=1)] | None = None
    # A larger integer becomes a float.
    __pydantic_extra__: dict[
        str, Annotated[int, pydantic.Field(gt=-(2**53), lt=2**53)] | float | str | None
    ]


class Environment(pydantic.BaseModel):
    """The fields of an entry of environment.json that readers rely on."""

    parameters: Annotated[int, pydantic.Field(ge=0, lt=2**53)] | None = None
    images: dict[str, Any] | None = None
    step: Annotated[int, pydantic.Field(ge=0, lt=2**53)] | None = None


RUNNING = "running"


def series_of(record: Mapping[str, Any]) -> str:
    """The series of a record: the split that was evaluated, or `RUNNING` for a train record.

    Train records have means over the steps since the previous one, on augmented batches in train
    mode.
    """
    return record.get("split") or RUNNING


def parse_record(line: str | bytes) -> dict[str, Any]:
    """Reads a line of metrics.jsonl. Raises ValueError if it is not a record."""
    try:
        return _Record.model_validate_json(line).model_dump(exclude_unset=True)
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def read_as(kind: Any, path: AnyPath) -> Any:
    """Reads a JSON file as a type. Raises UserError if the content has another type."""
    return checked(kind, filesystem.read_json(path, LARGEST[path.name]), path)


def checked(kind: Any, value: Any, path: AnyPath) -> Any:
    """Converts a JSON value that was read from a file to a type. Errors: `read_as`."""
    if kind is Status and isinstance(value, dict):
        value = [value.get(name) for name in Status._fields]
    try:
        return pydantic.TypeAdapter(kind).validate_python(value)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "its content"
        raise UserError(f"Cannot use {path}: {field}: {first['msg']}.") from error


def identity(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a config (in JSON types) that defines a run: all of it but `data.data_dir`.

    The folder of the data may differ between machines, and may move.
    """
    data = config.get("data")
    if not isinstance(data, dict):
        return config
    return {**config, "data": {name: data[name] for name in data if name != "data_dir"}}


def differing_fields(old: Any, new: Any, prefix: str = "") -> Iterator[str]:
    """Yields the dotted name and both values of each field in which two JSON values differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted(old.keys() | new.keys()):
            yield from differing_fields(
                old.get(key, "absent"), new.get(key, "absent"), f"{prefix}.{key}" if prefix else key
            )
    elif old != new:
        yield f"{prefix} ({old!r} there, {new!r} here)"
