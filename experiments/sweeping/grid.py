"""The grid of a sweep, kind x depth x varied fields x seed: its runs, their names and configs."""

import contextlib
import copy
import functools
import itertools
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, NamedTuple, Self

import pydantic
from pydantic import AfterValidator, BeforeValidator, Field, NonNegativeInt

from resnet_flax.config import DataConfig, ModelConfig, RunConfig, Section, parse, resolve
from resnet_flax.errors import UserError
from resnet_flax.models import cost
from resnet_flax.storage import sweep_file, sweep_folder
from resnet_flax.storage.filesystem import AnyPath
from resnet_flax.storage.recipe import Varying, flat, kind_of
from resnet_flax.training import architecture, build

_NAME_LENGTH = 200
# Fields that the sweep sets itself, or that no run's folder records.
_INSTEAD = {
    "seed": "config.seeds",
    "model.depth": "config.depths",
    "data.data_dir": "config.run.data.data_dir",
}


def _distinct(values: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(values)) < len(values):
        raise ValueError(f"expected distinct values, got {values}")
    return values


def _as_overrides(kind: Any) -> Any:
    return {"model.shortcut": kind} if isinstance(kind, str) else kind


def _values(fields: dict[str, Any]) -> dict[str, list[Any]]:
    for field, values in (fields := flat(fields)).items():
        if not isinstance(values, list) or not values:
            raise ValueError(f"expected a tuple of values for {field}, got {values!r}")
        if any(value in values[:i] for i, value in enumerate(values)):
            raise ValueError(f"expected distinct values for {field}, got {values}")
    return fields


Overrides = Annotated[dict[str, Any], AfterValidator(flat)]
"""Values of fields of a run: `{"optim": {"lr": 0.01}}` or `{"optim.lr": 0.01}`."""


class SweepConfig(Section):
    """The config of the runs, and the values that vary between them.

    For one run, a field is set by its kind, by `vary` or by `from_depth`, never by two of them.
    """

    run: RunConfig
    kinds: Annotated[
        dict[sweep_file.KindName, Annotated[Overrides, BeforeValidator(_as_overrides)]],
        Field(min_length=1),
    ]
    """Name -> overrides. A string is the value of `model.shortcut`."""
    depths: Annotated[tuple[int, ...], Field(min_length=1), AfterValidator(_distinct)]
    seeds: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1), AfterValidator(_distinct)]
    vary: Annotated[dict[str, Any], AfterValidator(_values)] = {}
    """Field -> its values: `{"optim": {"lr": (0.1, 0.01)}}`. The grid has all combinations."""
    from_depth: dict[NonNegativeInt, Overrides] = {}
    """Depth -> overrides for networks of at least this depth. Of two rules that set one field, the
    one of the greater depth holds."""

    warmup_from_depth: NonNegativeInt | None = None
    """In configs of older versions: the least depth with `run.optim.warmup_steps`."""

    @pydantic.model_validator(mode="after")
    def _of_older_versions(self) -> Self:
        if self.warmup_from_depth is None:
            return self
        optim = self.run.optim
        rule = {self.warmup_from_depth: {"optim.warmup_steps": optim.warmup_steps}}
        run = self.run.model_copy(update={"optim": optim.model_copy(update={"warmup_steps": 0})})
        update = {"run": run, "from_depth": rule | self.from_depth, "warmup_from_depth": None}
        return self.model_copy(update=update)

    @property
    def varying(self) -> Varying:
        """The fields in which runs may differ."""
        by_kind, by_depth = (
            tuple(dict.fromkeys(field for overrides in each.values() for field in overrides))
            for each in (self.kinds, self.from_depth)
        )
        return Varying(by_kind, by_depth, tuple(self.vary))


class GridRun(NamedTuple):
    """One run of the grid."""

    name: str
    kind: str
    config: RunConfig
    varying: Varying = Varying()

    @property
    def point(self) -> sweep_folder.GridPoint:
        config = self.config
        with named(self.name):
            work = multiply_adds(config.model, config.data)
        sizes = config.model.depth, config.seed, config.steps, config.data.batch_size
        fields = flat(config.model_dump(mode="json"))
        varied = {field: sweep_folder.cell(fields[field]) for field in self.varying.in_grid}
        return sweep_folder.GridPoint(self.name, self.kind, *sizes, work, varied)


@contextlib.contextmanager
def named(run: str) -> Iterator[None]:
    """Adds the name of the run to the message of a UserError."""
    try:
        yield
    except UserError as error:
        raise UserError(f"Run {run}: {error}") from error


def runs_of(config: dict[str, Any]) -> list[GridRun]:
    """The runs of a sweep's config, or the single run of a run's config.

    Raises UserError as `expand`, and if a field is varied in a run's config.
    """
    if "kinds" in config:
        return expand(parse(config, SweepConfig))
    if "vary" in config:
        raise UserError("Expected --vary with a sweep's --config, got a run's --config.")
    run = parse(config, RunConfig)
    kind = kind_of(flat(config))
    return [GridRun(f"{kind}-{run.model.depth}", kind, run)]


def expand(sweep: SweepConfig) -> list[GridRun]:
    """Lists the runs by seed, depth, varied fields, kind, so that a figure shows all depths early.

    Raises UserError that names the run, and the field or the kind that is wrong. Also for a network
    that cannot be built.
    """
    base = sweep.run.model_dump(mode="json")
    axes = itertools.product(sweep.seeds, sweep.depths, _combinations(sweep.vary), sweep.kinds)
    runs = []
    for seed, depth, varied, kind in axes:
        parts = [_slug(kind), str(depth), *map(_part_of_name, varied, varied.values()), f"s{seed}"]
        name = "-".join(parts)
        fixed = {"seed": seed, "model.depth": depth}
        with named(name):
            config = _config(base, _sources(sweep, kind, depth, varied), fixed)
            architecture.build_model(config.model, num_classes=1)
        runs.append(GridRun(name, kind, config, sweep.varying))
    _check_names(runs)
    return runs


def _combinations(vary: Mapping[str, list[Any]]) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*vary.values()):
        yield dict(zip(vary, values, strict=True))


def _sources(
    sweep: SweepConfig, kind: str, depth: int, varied: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """Flag -> the fields that it sets. Raises UserError for a field that two of them set."""
    rules = {
        f"config.from_depth.{least}": rule
        for least, rule in sorted(sweep.from_depth.items())
        if depth >= least
    }
    ruled = {field: flag for flag, rule in rules.items() for field in rule}
    others = {f"config.kinds.{kind}": sweep.kinds[kind], "config.vary": varied}
    owners = dict(ruled)
    for flag, overrides in others.items():
        for field in overrides:
            if field in owners:
                raise UserError(f"{flag} and {owners[field]} both set {field}. Remove one of them.")
            owners[field] = flag
    return rules | others


def _config(
    base: dict[str, Any],
    sources: Mapping[str, dict[str, Any]],
    fixed: dict[str, Any],
) -> RunConfig:
    """The config of a run. Raises UserError that names the flag which is wrong."""
    config = base
    for flag, overrides in sources.items():
        config = _with(config, overrides, flag)
    try:
        return parse(_set(config, fixed), RunConfig)
    except UserError:
        for flag, overrides in sources.items():  # If one of them is wrong in itself, it is named.
            parse(_with(base, overrides, flag), RunConfig, flag)
        raise


def _with(config: dict[str, Any], overrides: dict[str, Any], flag: str) -> dict[str, Any]:
    """The config with overrides. Raises UserError for a field that is unknown or not to be set."""
    for field in overrides:
        if field in _INSTEAD:
            raise UserError(f"{flag} sets {field}. Give --{_INSTEAD[field]} instead.")
        section: Any = config
        for name in field.split("."):
            if not isinstance(section, dict) or name not in section:
                accepted = ", ".join(section) if isinstance(section, dict) else "none below it"
                raise UserError(f"{flag}.{field}: no such field; accepted: {accepted}.")
            section = section[name]
        if isinstance(section, dict):
            raise UserError(f"{flag}.{field}: expected one of its fields: {', '.join(section)}.")
    return _set(config, overrides)


def _set(config: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    config = copy.deepcopy(config)
    for field, value in overrides.items():
        *sections, name = field.split(".")
        section = functools.reduce(dict.__getitem__, sections, config)
        section[name] = value
    return config


def _slug(text: str) -> str:
    """Text for a name of a folder: other characters than letters, digits and _ become _."""
    return re.sub(r"[^A-Za-z0-9_]+", "_", text)


def _part_of_name(field: str, value: Any) -> str:
    """`optim.lr`, 0.1 -> `lr0.1`."""
    values = value if isinstance(value, list) else [value]
    texts = (f"{each:g}" if isinstance(each, float) else _slug(str(each)) for each in values)
    return field.rpartition(".")[2] + "_".join(texts).replace("+", "")


def _check_names(runs: Sequence[GridRun]) -> None:
    """Raises UserError if two runs would have one name, or a name is too long."""
    for name, count in Counter(run.name for run in runs).items():
        if count > 1:
            first, second, *_ = (run.point.group for run in runs if run.name == name)
            raise UserError(
                f"Two runs would have the name {name}: {first!r} and {second!r}. Rename a kind, or"
                " give each of these values a sweep and a workdir of its own."
            )
        if len(name) > _NAME_LENGTH:
            raise UserError(
                f"Expected names of runs of at most {_NAME_LENGTH} characters, got {name}. Shorten"
                " the kind's name, or vary fewer fields."
            )


def check_recipe(runs: Sequence[GridRun], workdir: AnyPath) -> None:
    """Raises UserError if the folder has a sweep with another recipe, or a run by another name."""
    said = {run.name: (run.kind, run.config.model_dump(mode="json")) for run in runs}
    sweep_folder.check_recipe(workdir, said, runs[0].varying, resolve)


def save(runs: list[GridRun], workdir: AnyPath) -> None:
    """Writes `sweep.json`, which tells a report which runs to expect.

    Runs of an earlier grid in the same folder stay in the file.
    """
    entries = {
        run.name: {
            "kind": run.kind,
            "config": run.config.model_dump(mode="json"),
            "multiply_adds": run.point.multiply_adds,
        }
        for run in runs
    }
    sweep_folder.add_runs(workdir, entries, runs[0].varying, resolve)


@functools.cache
def multiply_adds(model: ModelConfig, data: DataConfig) -> int:
    """Multiply-adds of a forward pass of one image. Reads only the data set's description."""
    image_shape, num_classes = build.trained_images(data)
    architecture.check_image_shape(model, image_shape)
    return cost.multiply_adds(architecture.build_model(model, num_classes), image_shape)
