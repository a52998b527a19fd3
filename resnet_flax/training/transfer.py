"""Takes initial parameters and BN statistics from another run."""

from typing import Any

from flax import traverse_util

from resnet_flax.errors import UserError


def transfer(
    target: dict[str, Any], source: dict[str, Any], *, partial: bool
) -> tuple[dict[str, Any], list[str]]:
    """Replaces the arrays of `target` by those of `source` that have the same name and shape.

    Both are nested dicts of arrays, as `model.apply` takes them. Top-level entries that only
    `source` has are ignored.

    Returns the new dict, and one line for each array of either side without a counterpart.

    Raises UserError if there is such an array, unless `partial`. It also raises UserError if no
    array has a counterpart.
    """
    # The state of another run has more entries, of any kind.
    source = {
        name: tree for name, tree in source.items() if name in target and isinstance(tree, dict)
    }
    old, new = (traverse_util.flatten_dict(tree, sep=".") for tree in (source, target))
    taken = {name for name in old.keys() & new.keys() if old[name].shape == new[name].shape}
    left = [
        f"{name} ({_shape(old.get(name))} there, {_shape(new.get(name))} here)"
        for name in sorted((old.keys() | new.keys()) - taken)
    ]
    if not taken or (left and not partial):
        way_out = " Give config.init_partial=True to take the rest." if taken else ""
        raise UserError(
            f"{len(taken)} of {len(new)} arrays have the same name and shape in both networks; left"
            f" over: {', '.join(left)}.{way_out}"
        )
    merged = new | {name: old[name] for name in taken}
    return traverse_util.unflatten_dict(merged, sep="."), left


def _shape(array: Any) -> str:
    return "absent" if array is None else str(list(array.shape))
