"""The layer table of a network and the cost of a forward pass, from shapes alone."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from resnet_flax.models import blocks, resnet, vgg
from resnet_flax.runtime import bits

# A module of another type goes by the name of its type.
KINDS: dict[type[nn.Module], str] = {
    nn.Conv: "convolution",
    nn.BatchNorm: "BN",
    blocks.Identity: "identity",
    blocks.ReLU: "ReLU",
    resnet.MaxPool: "max pool",
    vgg.MaxPool: "max pool",
    resnet.GlobalAveragePool: "global average pool",
    nn.Dense: "fully connected",
}

BRANCHES = {"residual": "F", "project": "h"}
"""Method of a block -> the branch whose parts it calls."""


class Part(NamedTuple):
    """A row of the layer table. The row of a block includes its parts."""

    name: str
    kind: str
    shape: tuple[int, ...]  # The shape of the output, without the batch.
    parameters: int
    # For one image. Only convolutions and dense layers count, as in the paper's FLOPs.
    multiply_adds: int
    kernel: tuple[int, ...]  # Height and width, of a convolution only.
    stride: int  # How many times smaller than the input's the maps of the output are.
    branch: str  # In a block: "F", "h" for its projection, or "" outside of both.
    reads: str  # The part whose output it reads. "" is the image, or no part's output, as a sum.


def layer_table(model: nn.Module, image_shape: tuple[int, int, int]) -> list[Part]:
    """The parts in the order of computation, each block before its parts, softmax last.

    It traces shapes only and computes nothing.
    """
    if isinstance(model, resnet.ResNet):
        model = model.clone(scan=False, remat=False)  # A line for each block.
    parts: list[Part] = []
    branches = [""]
    made: dict[int, tuple[jax.Array, str]] = {}
    """Array -> itself, which keeps its id taken, and the name of the part that made it."""

    def record(call, args, kwargs, context):  # type: ignore[no-untyped-def]
        module = context.module
        if branch := BRANCHES.get(context.method_name):
            branches.append(branch)
            out = call(*args, **kwargs)
            branches.pop()
            return out
        if context.method_name != "__call__" or not module.path:
            return call(*args, **kwargs)
        place, (x, *_) = len(parts), args
        parts.append(Part("", "", (), 0, 0, (), 1, "", ""))
        _, reads = made.get(id(x), (x, ""))
        out = call(*args, **kwargs)
        params = module.variables.get("params", {})
        kernel = params.get("kernel")
        children = (p for p in parts[place + 1 :] if p.name.count("/") == len(module.path))
        held = sum(part.multiply_adds for part in children)
        parts[place] = Part(
            "/".join(module.path),
            _kind(module, x),
            out.shape[1:],
            sum(leaf.size for leaf in jax.tree.leaves(params)),
            held if kernel is None else kernel.size * int(np.prod(out.shape[1:-1])),
            kernel=() if kernel is None else kernel.shape[:-2],
            stride=round(x.shape[1] / out.shape[1]) if out.ndim == x.ndim == 4 else 1,
            branch=branches[-1],
            reads=reads,
        )
        made[id(out)] = out, parts[place].name
        return out

    with nn.intercept_methods(record):
        # Inside, so that no array is made: that would open a device.
        jax.eval_shape(lambda: model.init(bits.key(0), jnp.zeros((1, *image_shape))))
    last = parts[-1]
    return [*parts, Part("softmax", "softmax", last.shape, 0, 0, (), 1, "", last.name)]


def _kind(module: nn.Module, x: jax.Array) -> str:
    if not isinstance(module, blocks.Block):
        return KINDS.get(type(module), type(module).__name__)
    if module.shortcut == "none":
        return "plain block"
    if module.shortcut == "projection":
        return "convolution block"
    grows = module.stride > 1 or module.features * module.expansion != x.shape[-1]
    return "identity block, padded" if grows else "identity block"


def multiply_adds(model: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """The multiply-adds of a forward pass of one image.

    All blocks of a stage after its first are equal. So this traces at most two blocks a stage, and
    a deep network takes no longer than a shallow one.
    """
    if not isinstance(model, resnet.ResNet):
        return totals(layer_table(model, image_shape))[1]
    counts = model.blocks_per_stage
    repeats = {f"stage{stage}_block2": count - 1 for stage, count in enumerate(counts, 1)}
    short = model.clone(scan=False, remat=False, blocks_per_stage=tuple(min(n, 2) for n in counts))
    return sum(
        part.multiply_adds * repeats.get(part.name, 1) for part in _short_table(short, image_shape)
    )


@functools.cache
def _short_table(model: nn.Module, image_shape: tuple[int, int, int]) -> list[Part]:
    """The rows that are not inside another row."""
    return [part for part in layer_table(model, image_shape) if "/" not in part.name]


def totals(parts: list[Part]) -> tuple[int, int]:
    """Parameters and multiply-adds of a whole network: sums over rows not inside another row."""
    whole = [part for part in parts if "/" not in part.name]
    return sum(part.parameters for part in whole), sum(part.multiply_adds for part in whole)


def vgg19_multiply_adds() -> int:
    """The multiply-adds of VGG-19 at 224x224, with which the paper compares its networks."""
    return totals(layer_table(vgg.build_vgg(19, num_classes=1000), (224, 224, 3)))[1]
