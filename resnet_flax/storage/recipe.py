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


def of_run(kind: str, identity: Mapping[str, Any]) -> Recipe:
    """The recipe as one run shows it. `identity`: as in `records.identity`.

    It leaves out depth and seed. It says which kind its shortcut belongs to, and which depth its
    warm-up belongs to.
    """
    recipe = flat(identity)
    depth = recipe.pop("model.depth", None)
    recipe.pop("seed", None)
    for field, whose in (("model.shortcut", kind), ("optim.warmup_steps", f"depth {depth}")):
        if field in recipe:
            recipe[f"{field} of {whose}"] = recipe.pop(field)
    return recipe


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
