"""Translates the names of our arrays into PyTorch's, and recognises a network by its arrays.

O, I, H, W: output channels, input channels, height and width of a kernel.
"""

import re
from itertools import count, takewhile
from typing import Literal, get_args

import jax
import numpy as np
from flax import traverse_util

from resnet_flax.errors import UserError
from resnet_flax.models.blocks import BasicBlock, BottleneckBlock
from resnet_flax.models.resnet import Family, ResNet, Shortcut
from resnet_flax.runtime import bits

Names = Literal["torchvision", "transformers", "pytorch-cifar"]
Shape = tuple[int, ...]

# Our modules and theirs. Stage s, block b and layer i count from 1; s0, b0 and i0 count from 0.
TORCHVISION = {
    "conv": "conv1",
    "bn": "bn1",
    "block.conv": "layer{s}.{b0}.conv{i}",
    "block.bn": "layer{s}.{b0}.bn{i}",
    "block.shortcut_conv": "layer{s}.{b0}.downsample.0",
    "block.shortcut_bn": "layer{s}.{b0}.downsample.1",
    "fc": "fc",
}
MODULES = {
    "torchvision": TORCHVISION,
    "transformers": {
        "conv": "resnet.embedder.embedder.convolution",
        "bn": "resnet.embedder.embedder.normalization",
        "block.conv": "resnet.encoder.stages.{s0}.layers.{b0}.layer.{i0}.convolution",
        "block.bn": "resnet.encoder.stages.{s0}.layers.{b0}.layer.{i0}.normalization",
        "block.shortcut_conv": "resnet.encoder.stages.{s0}.layers.{b0}.shortcut.convolution",
        "block.shortcut_bn": "resnet.encoder.stages.{s0}.layers.{b0}.shortcut.normalization",
        "fc": "classifier.1",
    },
    "pytorch-cifar": TORCHVISION
    | {
        "block.shortcut_conv": "layer{s}.{b0}.shortcut.0",
        "block.shortcut_bn": "layer{s}.{b0}.shortcut.1",
        "fc": "linear",
    },
}
# Prefixes of names that only one library has. Without such names, a dict is torchvision's.
SIGNS = {"resnet.": "transformers", "linear.": "pytorch-cifar"}
ARRAYS = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
OURS = re.compile(r"(?:params|batch_stats)\.(?:stage(\d+)_(block)(\d+)\.)?(\w+?)(\d*)\.(\w+)")
# Our axes in PyTorch's order, by the number of axes: 4 for kernels HWIO, 2 for matrices [in, out].
TO_TORCH = {2: (1, 0), 4: (3, 2, 0, 1)}
STEMS: dict[Shape, Family] = {(7, 7): "imagenet", (3, 3): "cifar"}


def name_of(ours: str, names: str) -> str:
    """PyTorch's name of one of our arrays, or our own name if PyTorch has none."""
    if not (match := OURS.fullmatch(ours)):
        return ours
    s, block, b, module, i, array = match.groups()
    pattern = MODULES[names].get(f"{block}.{module}" if block else module, "")
    if array not in ARRAYS or ("{i" in pattern) != bool(i) or not pattern:
        return ours
    places = {name: int(place or 1) for name, place in (("s", s), ("b", b), ("i", i))}
    before = {f"{name}0": place - 1 for name, place in places.items()}
    return f"{pattern.format(**places, **before)}.{ARRAYS[array]}"


def recognise(arrays: dict[str, np.ndarray]) -> tuple[ResNet, dict[str, str]]:
    """The `ResNet` that has these arrays, and a dict from PyTorch's names to ours.

    `arrays` have PyTorch's names. The shortcut is `"none"` if the arrays fit `"none"` and `"pad"`.
    Raises UserError unless they are all the arrays of one `ResNet`, and no others.
    """
    shapes = {name: array.shape for name, array in arrays.items()}
    found = (SIGNS[sign] for sign in SIGNS if any(name.startswith(sign) for name in shapes))
    names = next(found, "torchvision")
    model, channels = _network(shapes, names)
    variables = jax.eval_shape(model.init, bits.key(0), np.zeros((1, 32, 32, channels)))
    ours = traverse_util.flatten_dict(variables, sep=".")
    expected = {
        name_of(name, names): tuple(a.shape[i] for i in TO_TORCH.get(a.ndim, range(a.ndim)))
        for name, a in ours.items()
    }
    differences = {
        "missing": [name for name in expected if name not in shapes],
        "unknown": [name for name in shapes if name not in expected],
        "of another shape": [
            f"{name} {list(shapes[name])} for {list(shape)}"
            for name, shape in expected.items()
            if shapes.get(name, shape) != shape
        ],
    }
    came = [f"{what}: {some(arrays)}" for what, arrays in differences.items() if arrays]
    if came:
        raise UserError(
            f"Expected the {len(expected)} arrays, by the names of {names}, of a post-activation"
            f" ResNet with {model.blocks_per_stage} {model.block.__name__}s and widths"
            f" {model.widths}, got other arrays; {'; '.join(came)}; give the state dict of one"
            " whole ResNet."
        )
    return model, dict(zip(expected, ours, strict=True))


def _network(shapes: dict[str, Shape], names: str) -> tuple[ResNet, int]:
    """The `ResNet` whose arrays have these shapes, and the number of channels of its images.

    `shapes` have PyTorch's names.
    """

    def kernel(module: str, *dimensions: str) -> Shape:
        name = name_of(f"params.{module}.kernel", names)
        shape = shapes.get(name, ())
        if len(shape) != len(dimensions) or 0 in shape:
            got = list(shape) if name in shapes else "none"
            raise UserError(
                f"Expected {name} [{', '.join(dimensions)}], got {got} among"
                f" {len(shapes)} arrays ({some(list(shapes))}); give the state dict of one whole"
                f" ResNet by the names of {' or '.join(get_args(Names))}."
            )
        return shape

    def has(stage: int, block: int, *modules: str) -> bool:
        ours = (f"params.stage{stage}_block{block}.{module}.kernel" for module in modules)
        return any(name_of(name, names) in shapes for name in ours)

    def blocks(stage: int) -> int:
        convs = ("conv1", "conv2", "conv3")
        return sum(1 for _ in takewhile(lambda block: has(stage, block, *convs), count(1)))

    stem, fc = kernel("conv", *"OIHW"), kernel("fc", "classes", "I")
    if stem[2:] not in STEMS:
        raise UserError(f"Expected a stem with a kernel of {list(STEMS)}, got {stem[2:]}.")
    counts = tuple(takewhile(bool, map(blocks, count(1))))
    stages = range(1, max(len(counts), 1) + 1)
    widths = tuple(kernel(f"stage{stage}_block1.conv2", *"OIHW")[0] for stage in stages)
    places = [(stage, block) for stage in stages for block in range(1, counts[stage - 1] + 1)]
    bottleneck = any(has(*place, "conv3") for place in places)
    projected = {place for place in places if has(*place, "shortcut_conv")}
    # Without projections, "none" and "pad" have the same arrays.
    shortcut: Shortcut = "projection" if projected else "none"
    if projected - {(stage, 1) for stage in stages if stage > 1 or bottleneck}:
        shortcut = "projection_all"
    block = BottleneckBlock if bottleneck else BasicBlock
    return ResNet(STEMS[stem[2:]], block, counts, widths, fc[0], shortcut), stem[1]


def some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
