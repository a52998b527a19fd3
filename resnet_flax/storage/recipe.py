"""A sweep's recipe: the config fields that its grid does not vary. All runs share it. No JAX."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

Recipe = dict[str, Any]
"""Dotted field -> value."""


class Difference(NamedTuple):
    """A field in which two recipes differ."""

    field: str
    old: Any
    new: Any


class Varying(NamedTuple):
    """The fields in which the runs of a sweep may differ, besides depth and seed.

    The defaults are those of sweeps of older versions.
    """

    by_kind: tuple[str, ...] = ("model.shortcut",)
    by_depth: tuple[str, ...] = ("optim.warmup_steps",)
    in_grid: tuple[str, ...] = ()

    def __or__(self, other: "Varying") -> "Varying":
        both = zip(self, other, strict=True)
        return Varying(*(tuple(dict.fromkeys([*one, *more])) for one, more in both))


NOTHING = Varying((), (), ())


def of_run(kind: str, identity: Mapping[str, Any], varying: Varying) -> Recipe:
    """The recipe as one run shows it. `identity`: as in `records.identity`.

    It leaves out depth, seed and the fields that vary in the grid. It says to which kind or which
    depth the fields belong that vary by it.
    """
    recipe = flat(identity)
    depth = recipe.pop("model.depth", None)
    for field in ("seed", *varying.in_grid):
        recipe.pop(field, None)
    for field in (*varying.by_kind, *varying.by_depth):
        if field in recipe:
            whose = [f" of {kind}"] if field in varying.by_kind else []
            whose += [f" of depth {depth}"] if field in varying.by_depth else []
            recipe[field + "".join(whose)] = recipe.pop(field)
    return recipe


def kind_of(config: Mapping[str, Any]) -> str:
    """The kind of a run that no sweep names: `plain`, `residual`, and its block if not the paper's.

    `config`: flat.
    """
    kind = "plain" if config.get("model.shortcut") == "none" else "residual"
    block = config.get("model.block", "postactivation")  # Older configs have no other.
    return kind if block == "postactivation" else f"{kind}, {block}"


def differences(old: Recipe, new: Recipe) -> list[Difference]:
    """Differences in the fields that both have. Older records may lack newer fields."""
    shared = sorted(old.keys() & new.keys())
    return [Difference(name, old[name], new[name]) for name in shared if old[name] != new[name]]


def group(runs: Iterable[Recipe]) -> tuple[list[Recipe], list[int]]:
    """Groups runs by recipe. Returns the recipes in order of appearance, and each run's index."""
    recipes: list[Recipe] = []
    places = []
    for said in runs:
        fits = (i for i, recipe in enumerate(recipes) if not differences(recipe, said))
        place = next(fits, len(recipes))
        if place == len(recipes):
            recipes.append({})
        recipes[place] |= said
        places.append(place)
    return recipes, places


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens nested objects into one with dotted names: `{"model.depth": 20, ...}`."""
    fields: dict[str, Any] = {}
    for key, value in config.items():
        inner = isinstance(value, dict) and value
        fields |= flat(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return fields
