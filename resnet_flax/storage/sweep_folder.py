"""A sweep's folder: reads and writes sweep.json, and joins all records in one table. No JAX."""

import contextlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import pandas as pd

from resnet_flax.errors import TryAgainError, UserError, complain
from resnet_flax.storage import filesystem, recipe, sweep_file
from resnet_flax.storage.filesystem import AnyPath
from resnet_flax.storage.lock import STALE_SECONDS, FolderLock
from resnet_flax.storage.recipe import Varying
from resnet_flax.storage.records import identity, series_of
from resnet_flax.storage.run_folder import RunFolder

Resolve = Callable[[dict[str, Any]], dict[str, Any]]
"""Adds newer fields to an older config. Raises UserError if it is not a config."""


Cell = float | int | str | bool | None


def cell(value: Any) -> Cell:
    """The value of a config field for a table: a list becomes text, such as "(8, 16, 32)"."""
    return f"({', '.join(map(str, value))})" if isinstance(value, list | dict) else value


class GridPoint(NamedTuple):
    """A run's place in the grid, and its cost.

    - `kind`: runs of one group and depth differ only in the seed; see `SweepFolder`.
    - `batch_size`: images of a training step, on all devices together.
    - `multiply_adds`: cost of a forward pass of one image.
    - `varied`: the run's values of the fields that vary in the grid, as `cell` writes them.
    """

    name: str
    kind: str
    depth: int
    seed: int
    steps: int
    batch_size: int
    multiply_adds: int
    varied: Mapping[str, Cell] = {}

    @property
    def group(self) -> str:
        """The kind and the varied values, such as "plain, lr 0.1"."""
        values = (f"{field.rpartition('.')[2]} {value}" for field, value in self.varied.items())
        return ", ".join([self.kind, *values])

    @property
    def work(self) -> int:
        """Cost of its training: multiply-adds of all forward passes."""
        return self.multiply_adds * self.batch_size * self.steps


class SweepFolder:
    """The records of a sweep. Iterates over the names of all its runs, begun or not.

    Folders of older versions may hold several recipes. Kinds of the second and later recipes get
    names such as "plain, recipe 2". `apart` has a line for each of these recipes.
    """

    def __init__(self, path: str | os.PathLike[str]):
        """Reads sweep.json. Raises UserError if the folder is not a sweep's."""
        self.path = filesystem.path(path)
        self.folder_of_runs, self._content, grid = self._read()
        """Each run's folder is in this one, and has the run's name."""
        self.varying = Varying(**grid.varying.model_dump()) if grid.varying else Varying()
        """The fields in which the runs may differ."""
        recipes, places = recipe.group(self.recipes())
        varied = {name: self._varied(name) for name in grid.runs}
        self.points = _points(grid.runs, dict(zip(grid.runs, places, strict=True)), varied)
        self.apart = _apart(recipes, Counter(places))

    def _read(self) -> tuple[AnyPath, dict[str, Any], sweep_file.Grid]:
        return self.path, *sweep_file.read(self.path)

    def __iter__(self) -> Iterator[str]:
        return iter(self.points)

    def __len__(self) -> int:
        return len(self.points)

    def records(self, name: str) -> RunFolder:
        """The records of a run. If the sweep lacks it, the UserError names its runs."""
        if name not in self.points:
            raise UserError(f"No run {name!r} in {self.path}; there are: {', '.join(self)}.")
        return RunFolder(self.folder_of_runs / name)

    def config(self, name: str) -> dict[str, Any]:
        """A run's identity, from sweep.json."""
        return identity(self._content["runs"][name]["config"])

    def _varied(self, name: str) -> dict[str, Cell]:
        fields = recipe.flat(self.config(name))
        return {field: cell(fields.get(field)) for field in self.varying.in_grid}

    def recipes(
        self, resolve: Resolve = lambda config: config, varying: Varying = recipe.NOTHING
    ) -> list[recipe.Recipe]:
        """The recipe as each run shows it. `varying`: more fields that may differ."""
        entries, varying = self._content["runs"].values(), self.varying | varying
        return [_said(entry["kind"], resolve(entry["config"]), varying) for entry in entries]

    def frame(self) -> pd.DataFrame:
        """A table of all records of all runs, with one row for each number.

        Rows are ordered by run, then as the records are. Runs whose records have changed since they
        ended are left out. Raises UserError if a record cannot be read. Columns:

        - `run`, `kind`, `depth`, `seed`;
        - one for each field that varies in the grid, such as `optim.lr`; a list is text there;
        - `step`;
        - `split`: the record's series, see `series_of`;
        - `metric`: loss (in nats), error (a fraction), lr, images_per_second, images or epoch;
        - `value`: NaN if it was not finite.
        """
        rows = [
            (*point[:4], *point.varied.values(), record["step"], series_of(record), metric, value)
            for name, point in self.points.items()
            if not self.changed(name)
            for record in self.records(name).metrics()
            for metric, value in record.items()
            if metric != "step" and not isinstance(value, str)
        ]
        columns = ["run", "kind", "depth", "seed", *self.varying.in_grid]
        columns += ["step", "split", "metric", "value"]
        return pd.DataFrame(rows, columns=columns).astype({"value": float})

    def changed(self, name: str) -> str | None:
        """A message if a run's records have changed since it ended, or None."""
        folder = self.records(name)
        status = folder.status()
        return folder.changed(status) if status else None


class SingleRun(SweepFolder):
    """The records of one run, as those of a sweep that has no other."""

    def _read(self) -> tuple[AnyPath, dict[str, Any], sweep_file.Grid]:
        return self.path.parent, *sweep_file.of_run(self.path)


def sweep_or_run(path: str | os.PathLike[str]) -> SweepFolder:
    """The records in a folder. Raises UserError if it is neither a sweep's nor a run's."""
    folder = filesystem.path(path)
    if filesystem.exists(folder / "sweep.json"):
        return SweepFolder(folder)
    if filesystem.exists(folder / "config.json"):
        return SingleRun(folder)
    raise UserError(
        f"Expected a sweep's or a run's folder, got {folder}: it has no sweep.json and no"
        " config.json. Give the --workdir of a sweep, or of a run."
    )


def add_runs(
    path: AnyPath,
    runs: Mapping[str, dict[str, Any]],
    varying: Varying,
    resolve: Resolve = lambda config: config,
) -> None:
    """Adds runs to `sweep.json`: name -> {"kind", "config", "multiply_adds"}.

    Runs of earlier grids stay, and get the fields that they lack: one of them may vary now. Each
    config is stored as its identity. Waits while another process adds runs. `varying`: the fields
    in which these runs may differ.
    """
    file = path / "sweep.json"

    def joined() -> str:
        return _joined(path, runs, varying, resolve)

    # The jobs of an array add the same runs, many at once: only the first has to write.
    if file.exists() and filesystem.read_bytes(file, sweep_file.LARGEST) == joined().encode():
        return
    with _alone(path):
        filesystem.write_text(file, joined())


@contextlib.contextmanager
def _alone(path: AnyPath) -> Iterator[None]:
    """A context in which no other process changes `sweep.json`. Others end theirs in a moment."""
    lock, end = FolderLock(path), time.monotonic() + STALE_SECONDS
    while True:
        try:
            lock.acquire(complain)
            break
        except TryAgainError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)
    try:
        yield
    finally:
        lock.release()


def _joined(
    path: AnyPath, runs: Mapping[str, dict[str, Any]], varying: Varying, resolve: Resolve
) -> str:
    """The text of `sweep.json` with more runs."""
    earlier: dict[str, Any] = {}
    if (path / "sweep.json").exists():
        sweep = SweepFolder(path)
        earlier = {
            name: {**entry, "config": resolve(entry["config"])}
            for name, entry in sweep._content["runs"].items()
        }
        varying = sweep.varying | varying
    entries = {
        name: {**entry, "config": identity(entry["config"])}
        for name, entry in {**earlier, **runs}.items()
    }
    return filesystem.pretty_json({"varying": varying._asdict(), "runs": entries})


def check_recipe(
    path: AnyPath,
    runs: Mapping[str, tuple[str, dict[str, Any]]],
    varying: Varying,
    resolve: Resolve,
) -> None:
    """Raises UserError if the folder has a sweep with another recipe than these runs.

    Also if it has one of these runs under another name. `runs`: name -> (kind, config).
    """
    file = path / "sweep.json"
    if not filesystem.exists(file):
        return
    sweep = SweepFolder(path)
    try:
        there, _ = recipe.group(sweep.recipes(resolve, varying))
        named = {_key(sweep.points[name].kind, resolve(sweep.config(name))): name for name in sweep}
    except UserError as error:
        raise UserError(f"Cannot use {file}: {error}") from error
    for name, (kind, config) in runs.items():
        other = named.get(_key(kind, config), name)
        if other != name:
            raise UserError(
                f"{path} holds {other}, which is the same run as {name}. Choose another workdir, or"
                " give only values that are not there yet."
            )
        said = _said(kind, config, sweep.varying | varying)
        different = [recipe.differences(one, said) for one in there]
        if all(different):
            fields = "; ".join(f"{f} ({old!r} there, {new!r} here)" for f, old, new in different[0])
            raise UserError(
                f"{path} holds a sweep of another recipe: {fields}. Choose another workdir, or give"
                " the same config."
            )


def _said(kind: str, config: dict[str, Any], varying: Varying) -> recipe.Recipe:
    return recipe.of_run(kind, identity(config), varying)


def _key(kind: str, config: dict[str, Any]) -> str:
    """Two runs with the same key are the same run."""
    return json.dumps([kind, identity(config)], sort_keys=True)


def _points(
    entries: Mapping[str, sweep_file.Entry],
    places: Mapping[str, int],
    varied: Mapping[str, dict[str, Cell]],
) -> dict[str, GridPoint]:
    """The grid points of all runs, by name.

    - `places`: the index of each run's recipe.
    - `varied`: each run's values of the fields that vary in the grid.
    """
    # If one cost is unknown, the depth is every run's cost, so that costs stay comparable.
    known = all(entry.multiply_adds for entry in entries.values())
    points = {}
    for name, entry in entries.items():
        config = entry.config
        cost = entry.multiply_adds if known and entry.multiply_adds else config.model.depth
        sizes = config.model.depth, config.seed, config.steps, config.data.batch_size, cost
        kind = f"{entry.kind}, recipe {places[name] + 1}" if places[name] else entry.kind
        points[name] = GridPoint(name, kind, *sizes, varied[name])
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
