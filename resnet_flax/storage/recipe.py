"""A sweep's recipe: what its runs share, which is all that a grid does not vary. No JAX."""

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
    """What one run says of its sweep's recipe; `identity` is as in `records.identity`.

    The depth and the seed are no part of it. The shortcut is a fact of the kind alone, and the
    warm-up one of the depth.
    """
    recipe = flat(identity)
    depth = recipe.pop("model.depth", None)
    recipe.pop("seed", None)
    for field, whose in (("model.shortcut", kind), ("optim.warmup_steps", f"depth {depth}")):
        if field in recipe:
            recipe[f"{field} of {whose}"] = recipe.pop(field)
    return recipe


def differences(old: Recipe, new: Recipe) -> list[Difference]:
    """Of the fields that both have: an older record may lack what came later."""
    shared = sorted(old.keys() & new.keys())
    return [Difference(name, old[name], new[name]) for name in shared if old[name] != new[name]]


def group(runs: Iterable[Recipe]) -> tuple[list[Recipe], list[int]]:
    """The recipes of runs, in order of appearance, and for each run the index of its own."""
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
    """Nested objects as one, with dotted names: `{"model.depth": 20, ...}`."""
    fields: dict[str, Any] = {}
    for key, value in config.items():
        inner = isinstance(value, dict) and value
        fields |= flat(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return fields
