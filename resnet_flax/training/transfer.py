"""Initial parameters and BN statistics from another run."""

from typing import Any

from flax import traverse_util

from resnet_flax.errors import UserError


def transfer(
    target: dict[str, Any], source: dict[str, Any], *, partial: bool
) -> tuple[dict[str, Any], list[str]]:
    """`target` with the arrays of `source` that agree in name and shape, and what is left over.

    Both are nested dicts of arrays, as `model.apply` takes them. What is left over, a line each:
    arrays of either side without such a counterpart. Raises UserError if there are any, unless
    `partial`, and in any case if nothing agrees. `source` may hold more than `target` at its top.
    """
    # Of another run's state there is more, and who knows what.
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
            f"{len(taken)} of {len(new)} arrays agree in name and shape; left over:"
            f" {', '.join(left)}.{way_out}"
        )
    merged = new | {name: old[name] for name in taken}
    return traverse_util.unflatten_dict(merged, sep="."), left


def _shape(array: Any) -> str:
    return "absent" if array is None else str(list(array.shape))
