"""The records of a run as types: what is read from its JSON files, and checked. No JAX."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, NamedTuple

import pydantic

from resnet_flax.errors import UserError
from resnet_flax.storage import filesystem
from resnet_flax.storage.filesystem import AnyPath

# The most bytes that are read of each.
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


class Environment(pydantic.BaseModel):
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


def read_as(kind: Any, path: AnyPath) -> Any:
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
