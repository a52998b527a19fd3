"""The file sweep.json of a sweep's folder: which runs it has, checked as it is read. No JAX."""

import re
from typing import Annotated, Any, TypeVar

import pydantic
from pydantic import AfterValidator, BeforeValidator, Field

from resnet_flax.errors import UserError
from resnet_flax.storage import filesystem, recipe
from resnet_flax.storage.filesystem import AnyPath
from resnet_flax.storage.run_folder import RunFolder


def _printable(name: str) -> str:
    if not name.isprintable() or not name.strip():
        raise ValueError(f"expected a printable name, got {name!r}")
    return name


KindName = Annotated[str, Field(max_length=100), AfterValidator(_printable)]
# These are names of folders, so they must not lead out of the sweep's folder.
RunName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.\-]*$", max_length=200)]
LARGEST = 2**26  # Bytes of sweep.json.
Count = Annotated[int, Field(ge=1, lt=2**31)]


M = TypeVar("M", bound=pydantic.BaseModel)


class _Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True)


class _Model(_Strict):
    depth: Count


class _Data(_Strict):
    batch_size: Count


class _Config(_Strict):
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    steps: Count
    model: _Model
    data: _Data


def _with_names(config: Any) -> Any:
    """Returns a config, or a section, unchanged. Raises ValueError for a bad field name."""
    for name, value in config.items() if isinstance(config, dict) else ():
        if not re.fullmatch(r"\w{1,100}", name):
            raise ValueError(f"expected a field name of letters, digits and _, got {name!r:.60}")
        _with_names(value)
    return config


class Entry(_Strict):
    kind: KindName
    config: Annotated[_Config, BeforeValidator(_with_names)]
    multiply_adds: Annotated[int, Field(ge=1, lt=2**63)] | None = None
    """None in sweeps of older versions."""


FieldName = Annotated[str, Field(pattern=r"^\w+(\.\w+)*$", max_length=200)]
_Fields = Annotated[tuple[FieldName, ...], Field(strict=False)]


class _Varying(_Strict):
    by_kind: _Fields
    by_depth: _Fields
    in_grid: _Fields


class Grid(_Strict):
    """The fields of sweep.json that readers rely on."""

    varying: _Varying | None = None
    """None in sweeps of older versions."""
    runs: Annotated[dict[RunName, Entry], Field(min_length=1)]


def read(folder: AnyPath) -> tuple[dict[str, Any], Grid]:
    """The content of sweep.json. Raises UserError if the folder has none, or none of a sweep."""
    file = folder / "sweep.json"
    if not filesystem.exists(file):
        raise UserError(f"Expected a sweep's folder, got {folder}: it has no sweep.json.")
    content = filesystem.read_json(file, LARGEST)
    return content, _checked(Grid, content, file)


def of_run(folder: AnyPath) -> tuple[dict[str, Any], Grid]:
    """The same for a sweep of a single run, in a run's folder. The run has the folder's name.

    Raises UserError if the folder is not a run's.
    """
    run = RunFolder(folder)
    config = run.config()
    entry = {"kind": recipe.kind_of(recipe.flat(config)), "config": config}
    # Not checked as a name: it comes from no file.
    runs = {folder.name: _checked(Entry, entry, run.config_file)}
    return {"runs": {folder.name: entry}}, Grid.model_construct(runs=runs)


def _checked(kind: type[M], content: Any, file: AnyPath) -> M:
    try:
        return kind.model_validate(content)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        said = first["msg"].removeprefix("Value error, ")
        raise UserError(f"Cannot use {file}: {field!r}: {said}.") from error
