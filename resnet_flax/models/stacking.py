"""Turns the equal blocks of a stage into one block with stacked parameters, and back.

XLA compiles the repeated block of a stage once and loops over it. So compile time hardly grows with
depth. In a tree, `stage2_block2` to `stage2_blockN` become `stage2_blocks`. Its arrays have a
leading axis of length N-1. The first block may halve the maps, so it stays separate. Files on disk
never hold stacked blocks.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from flax import linen as nn

T = TypeVar("T")
_BLOCK = re.compile(r"(stage\d+)_block(\d+)")
_BLOCKS = re.compile(r"(stage\d+)_blocks")


def scan_blocks(block: nn.Module, x: jax.Array, length: int) -> jax.Array:
    """Passes x through `length` copies of a block, each with its own parameters.

    The block must keep the shape of x.
    """

    def body(block: nn.Module, x: jax.Array, _: None) -> tuple[jax.Array, None]:
        return block(x), None

    scan = nn.scan(
        body,
        variable_axes={"params": 0, "batch_stats": 0},
        split_rngs={"params": True},
        length=length,
    )
    return scan(block, x, None)[0]


def stack(tree: T) -> T:
    """Stacks the blocks of each stage, anywhere in a tree of host arrays."""
    return _convert(tree, _stacked)


def unstack(tree: T) -> T:
    """The inverse of `stack`. It also takes traced arrays."""
    return _convert(tree, _unstacked)


def stands_in_stack(path: Sequence[Any]) -> bool:
    """Whether an array has a leading axis of blocks. `path`: its keys in the tree, as jax gives."""
    return any(_BLOCKS.search(str(key)) for key in path)


def _convert(tree: T, convert: Callable[[dict[str, Any]], dict[str, Any]]) -> T:
    def has_stages(node: Any) -> bool:
        return isinstance(node, dict) and any(str(name).startswith("stage") for name in node)

    def converted(node: Any) -> Any:
        return convert(node) if has_stages(node) else node

    return jax.tree.map(converted, tree, is_leaf=has_stages)


def _stacked(net: dict[str, Any]) -> dict[str, Any]:
    rest = {name: tree for name, tree in net.items() if not _later_block(name)}
    stages: dict[str, list[tuple[int, Any]]] = {}
    for name, tree in net.items():
        if match := _later_block(name):
            stages.setdefault(match[1], []).append((int(match[2]), tree))
    for stage, blocks in stages.items():
        trees = [tree for _, tree in sorted(blocks, key=lambda block: block[0])]
        rest[f"{stage}_blocks"] = jax.tree.map(lambda *leaves: np.stack(leaves), *trees)
    return rest


def _later_block(name: str) -> re.Match[str] | None:
    match = _BLOCK.fullmatch(name)
    return match if match and int(match[2]) > 1 else None


def _unstacked(net: dict[str, Any]) -> dict[str, Any]:
    rest = {}
    for name, tree in net.items():
        if match := _BLOCKS.fullmatch(name):
            for i in range(len(jax.tree.leaves(tree)[0])):
                rest[f"{match[1]}_block{i + 2}"] = jax.tree.map(lambda leaf, i=i: leaf[i], tree)
        else:
            rest[name] = tree
    return rest
