"""A sweep's folder: the only file that knows sweep.json, and all records as one table. No JAX."""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Annotated, Any, NamedTuple

import pandas as pd
import pydantic
from pydantic import BeforeValidator, Field

from resnet_flax.errors import UserError
from resnet_flax.storage import filesystem, recipe
from resnet_flax.storage.filesystem import AnyPath
from resnet_flax.storage.records import identity, series_of
from resnet_flax.storage.run_folder import RunFolder

# A kind becomes part of a folder's name, and a run's name is one: neither leads out of the sweep's.
KindName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+$", max_length=100)]
RunName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.\-]*$", max_length=200)]
LARGEST = 2**26  # Bytes of sweep.json.
Count = Annotated[int, Field(ge=1, lt=2**31)]
Resolve = Callable[[dict[str, Any]], dict[str, Any]]
"""Gives an older config the fields that came later. Raises UserError for what is no config."""
COLUMNS = ("run", "kind", "depth", "seed", "step", "split", "metric", "value")


class GridPoint(NamedTuple):
    """A run's place in the grid, and how long it is.

    - `kind`: runs of one kind and depth differ in the seed alone; see `SweepFolder`.
    - `batch_size`: in images, of all devices.
    - `multiply_adds`: of a forward pass of one image.
    """

    name: str
    kind: str
    depth: int
    seed: int
    steps: int
    batch_size: int
    multiply_adds: int

    @property
    def work(self) -> int:
        """What its training costs in multiply-adds of forward passes."""
        return self.multiply_adds * self.batch_size * self.steps


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
    """A config, or a section of one. Raises ValueError if a field's name is none."""
    for name, value in config.items() if isinstance(config, dict) else ():
        if not re.fullmatch(r"\w{1,100}", name):
            raise ValueError(f"expected the name of a field, got {name!r:.60}")
        _with_names(value)
    return config


class _Entry(_Strict):
    kind: KindName
    config: Annotated[_Config, BeforeValidator(_with_names)]
    multiply_adds: Annotated[int, Field(ge=1, lt=2**63)] | None = None
    """Grids of an earlier time lack it."""


class _Grid(_Strict):
    """What readers rely on in a sweep.json."""

    runs: Annotated[dict[RunName, _Entry], Field(min_length=1)]


class SweepFolder:
    """The records of a sweep; iterates over the names of its runs, begun or not.

    Folders of an earlier time may hold several recipes. The kinds of all but the first are other
    kinds, such as "plain, recipe 2", and `apart` says in lines what each of these recipes is.
    """

    def __init__(self, path: str | os.PathLike[str]):
        """Raises UserError if the folder is no sweep's."""
        self.path = filesystem.path(path)
        file = self.path / "sweep.json"
        if not filesystem.exists(file):
            raise UserError(f"Expected a sweep's folder, got {path}: it has no sweep.json.")
        self._content = filesystem.read_json(file, LARGEST)
        try:
            grid = _Grid.model_validate(self._content)
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"]))
            said = first["msg"].removeprefix("Value error, ")
            raise UserError(f"Cannot use {file}: {field!r}: {said}.") from error
        recipes, places = recipe.group(self.recipes())
        self.points = _points(grid.runs, dict(zip(grid.runs, places, strict=True)))
        self.apart = _apart(recipes, Counter(places))

    def __iter__(self) -> Iterator[str]:
        return iter(self.points)

    def __len__(self) -> int:
        return len(self.points)

    def records(self, name: str) -> RunFolder:
        """A run's records. Raises UserError, naming those there are, if the sweep lacks it."""
        if name not in self.points:
            raise UserError(f"No run {name!r} in {self.path}; there are: {', '.join(self)}.")
        return RunFolder(self.path / name)

    def config(self, name: str) -> dict[str, Any]:
        """A run's identity as the grid has it."""
        return identity(self._content["runs"][name]["config"])

    def recipes(self, resolve: Resolve = lambda config: config) -> list[recipe.Recipe]:
        """What each run says of the recipe."""
        entries = self._content["runs"].values()
        return [_said(entry["kind"], resolve(entry["config"])) for entry in entries]

    def frame(self) -> pd.DataFrame:
        """All records of all runs, one row a number, by run and in the order of the records.

        Columns: run, kind, depth, seed, step, split (the
        record's series, see `series_of`), metric (loss in nats, error as
        a fraction, lr, images_per_second, images, epoch), value (NaN for what was not finite).
        Raises UserError if a record cannot be read.
        """
        rows = [
            (*point[:4], record["step"], series_of(record), metric, value)
            for name, point in self.points.items()
            for record in self.records(name).metrics()
            for metric, value in record.items()
            if metric != "step" and not isinstance(value, str)
        ]
        return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"value": float})


def add_runs(path: AnyPath, runs: Mapping[str, dict[str, Any]]) -> None:
    """Writes `sweep.json`: name -> {"kind", "config", "multiply_adds"}.

    Runs of an earlier grid stay in it. Of each config, the identity is kept.
    """
    file = path / "sweep.json"
    earlier = SweepFolder(path)._content["runs"] if file.exists() else {}
    entries = {
        name: {**entry, "config": identity(entry["config"])}
        for name, entry in {**earlier, **runs}.items()
    }
    filesystem.write_json(file, {"runs": entries})


def check_recipe(
    path: AnyPath, runs: Iterable[tuple[str, dict[str, Any]]], resolve: Resolve
) -> None:
    """Raises UserError if the folder has a sweep, and not of the recipe of these runs.

    `runs`: (kind, config) of each.
    """
    file = path / "sweep.json"
    if not filesystem.exists(file):
        return
    sweep = SweepFolder(path)
    try:
        there, _ = recipe.group(sweep.recipes(resolve))
    except UserError as error:
        raise UserError(f"Cannot use {file}: {error}") from error
    for kind, config in runs:
        different = [recipe.differences(one, _said(kind, config)) for one in there]
        if all(different):
            fields = "; ".join(f"{f} ({old!r} there, {new!r} here)" for f, old, new in different[0])
            raise UserError(
                f"{path} holds a sweep of another recipe: {fields}. Choose another workdir, or give"
                " the same config."
            )


def _said(kind: str, config: dict[str, Any]) -> recipe.Recipe:
    return recipe.of_run(kind, identity(config))


def _points(entries: Mapping[str, _Entry], places: Mapping[str, int]) -> dict[str, GridPoint]:
    """`places`: the index of each run's recipe."""
    # Where one lacks its cost, depths stand for all, so that costs compare.
    known = all(entry.multiply_adds for entry in entries.values())
    points = {}
    for name, entry in entries.items():
        config = entry.config
        cost = entry.multiply_adds if known and entry.multiply_adds else config.model.depth
        sizes = config.model.depth, config.seed, config.steps, config.data.batch_size, cost
        kind = f"{entry.kind}, recipe {places[name] + 1}" if places[name] else entry.kind
        points[name] = GridPoint(name, kind, *sizes)
    return points


def _apart(recipes: list[recipe.Recipe], counts: Mapping[int, int]) -> list[str]:
    """A line for each recipe but the first."""
    lines = []
    for i, one in enumerate(recipes[1:], 1):
        # Values are whatever stands in the file: quoted, and cut off.
        differences = recipe.differences(recipes[0], one)
        fields = "; ".join(f"{f} {new!r:.60}, not {old!r:.60}" for f, old, new in differences)
        runs = f"{counts[i]} run{'s' if counts[i] > 1 else ''}"
        lines.append(f"{runs} of another recipe, kept apart as recipe {i + 1}: {fields}.")
    return lines
