"""A sweep's folder: reads and writes sweep.json, and joins all records in one table. No JAX."""

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

# These become names of folders, so they must not lead out of the sweep's folder.
KindName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+$", max_length=100)]
RunName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.\-]*$", max_length=200)]
LARGEST = 2**26  # Bytes of sweep.json.
Count = Annotated[int, Field(ge=1, lt=2**31)]
Resolve = Callable[[dict[str, Any]], dict[str, Any]]
"""Adds newer fields to an older config. Raises UserError if it is not a config."""
COLUMNS = ("run", "kind", "depth", "seed", "step", "split", "metric", "value")


class GridPoint(NamedTuple):
    """A run's place in the grid, and its cost.

    - `kind`: runs of one kind and depth differ only in the seed; see `SweepFolder`.
    - `batch_size`: images of a training step, on all devices together.
    - `multiply_adds`: cost of a forward pass of one image.
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
        """Cost of its training: multiply-adds of all forward passes."""
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
    """Returns a config, or a section, unchanged. Raises ValueError for a bad field name."""
    for name, value in config.items() if isinstance(config, dict) else ():
        if not re.fullmatch(r"\w{1,100}", name):
            raise ValueError(f"expected a field name of letters, digits and _, got {name!r:.60}")
        _with_names(value)
    return config


class _Entry(_Strict):
    kind: KindName
    config: Annotated[_Config, BeforeValidator(_with_names)]
    multiply_adds: Annotated[int, Field(ge=1, lt=2**63)] | None = None
    """None in sweeps of older versions."""


class _Grid(_Strict):
    """The fields of sweep.json that readers rely on."""

    runs: Annotated[dict[RunName, _Entry], Field(min_length=1)]


class SweepFolder:
    """The records of a sweep. Iterates over the names of all its runs, begun or not.

    Folders of older versions may hold several recipes. Kinds of the second and later recipes get
    names such as "plain, recipe 2". `apart` has a line for each of these recipes.
    """

    def __init__(self, path: str | os.PathLike[str]):
        """Reads sweep.json. Raises UserError if the folder is not a sweep's."""
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
        """The records of a run. If the sweep lacks it, the UserError names its runs."""
        if name not in self.points:
            raise UserError(f"No run {name!r} in {self.path}; there are: {', '.join(self)}.")
        return RunFolder(self.path / name)

    def config(self, name: str) -> dict[str, Any]:
        """A run's identity, from sweep.json."""
        return identity(self._content["runs"][name]["config"])

    def recipes(self, resolve: Resolve = lambda config: config) -> list[recipe.Recipe]:
        """The recipe as each run shows it."""
        entries = self._content["runs"].values()
        return [_said(entry["kind"], resolve(entry["config"])) for entry in entries]

    def frame(self) -> pd.DataFrame:
        """A table of all records of all runs, with one row for each number.

        Rows are ordered by run, then as the records are. Raises UserError if a record cannot be
        read. Columns:

        - `run`, `kind`, `depth`, `seed`, `step`;
        - `split`: the record's series, see `series_of`;
        - `metric`: loss (in nats), error (a fraction), lr, images_per_second, images or epoch;
        - `value`: NaN if it was not finite.
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
    """Adds runs to `sweep.json`: name -> {"kind", "config", "multiply_adds"}.

    Runs of earlier grids stay. Each config is stored as its identity.
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
    """Raises UserError if the folder has a sweep with another recipe than these runs.

    `runs`: the (kind, config) of each run.
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
    """The grid points of all runs, by name. `places`: the index of each run's recipe."""
    # If one cost is unknown, the depth is every run's cost, so that costs stay comparable.
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
    """A line for each recipe after the first."""
    lines = []
    for i, one in enumerate(recipes[1:], 1):
        # The file may hold any value, so values are quoted and cut off.
        differences = recipe.differences(recipes[0], one)
        fields = "; ".join(f"{f} {new!r:.60}, not {old!r:.60}" for f, old, new in differences)
        runs = f"{counts[i]} run{'s' if counts[i] > 1 else ''}"
        lines.append(f"{runs} of another recipe, kept apart as recipe {i + 1}: {fields}.")
    return lines
