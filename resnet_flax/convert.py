"""Weights from PyTorch and back, by torchvision's names or those of transformers.

O, I, H, W: output channels, input channels, height and width of a kernel.
"""

import re
from collections.abc import Mapping
from itertools import count, takewhile
from typing import Any, Literal, get_args

import jax
import numpy as np
from flax import traverse_util

from resnet_flax.errors import UserError
from resnet_flax.models import stacking
from resnet_flax.models.blocks import BasicBlock, BottleneckBlock
from resnet_flax.models.resnet import Family, ResNet, Shortcut

Names = Literal["torchvision", "transformers"]
Shape = tuple[int, ...]

# Our modules and theirs. Stage s, block b, layer i are counted from 1; s0, b0, i0 are less one.
MODULES = {
    "torchvision": {
        "conv": "conv1",
        "bn": "bn1",
        "block.conv": "layer{s}.{b0}.conv{i}",
        "block.bn": "layer{s}.{b0}.bn{i}",
        "block.shortcut_conv": "layer{s}.{b0}.downsample.0",
        "block.shortcut_bn": "layer{s}.{b0}.downsample.1",
        "fc": "fc",
    },
    "transformers": {
        "conv": "resnet.embedder.embedder.convolution",
        "bn": "resnet.embedder.embedder.normalization",
        "block.conv": "resnet.encoder.stages.{s0}.layers.{b0}.layer.{i0}.convolution",
        "block.bn": "resnet.encoder.stages.{s0}.layers.{b0}.layer.{i0}.normalization",
        "block.shortcut_conv": "resnet.encoder.stages.{s0}.layers.{b0}.shortcut.convolution",
        "block.shortcut_bn": "resnet.encoder.stages.{s0}.layers.{b0}.shortcut.normalization",
        "fc": "classifier.1",
    },
}
ARRAYS = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
OURS = re.compile(r"(?:params|batch_stats)\.(?:stage(\d+)_(block)(\d+)\.)?(\w+?)(\d*)\.(\w+)")
# Axes, by their number: kernels HWIO, matrices [in, out] here; OIHW, [out, in] there.
FROM_TORCH = {2: (1, 0), 4: (2, 3, 1, 0)}
TO_TORCH = {2: (1, 0), 4: (3, 2, 0, 1)}
STEMS: dict[Shape, Family] = {(7, 7): "imagenet", (3, 3): "cifar"}
COUNTER = ".num_batches_tracked"  # PyTorch reads it only where BN has no momentum.


def from_torch(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """The variables of our `ResNet`, as `model.apply` takes them, from a PyTorch state dict.

    `state_dict`: what `np.asarray` takes (a tensor on the CPU) by torchvision's names, such as
    `layer1.0.conv1.weight`, or transformers', `resnet.encoder.stages.0...`. Returns `params` and
    `batch_stats`: nested dicts of float32 numpy arrays that share no memory with it, kernels
    [O, I, H, W] as [H, W, I, O], matrices [out, in] as [in, out].

    The network that computes the same has the dict's blocks, widths and classes, `bn_epsilon=1e-5`
    (the default), and what no array shows:

    - `shortcut`: `"projection"` for the ResNets of torchvision and transformers. A dict without
      projections fits `"pad"` (option A) and `"none"` (plain).
    - `bottleneck_stride`: `"3x3"`, but `"1x1"` where transformers' config has
      `downsample_in_bottleneck`.

    A training step differs in one thing: PyTorch moves the running variance by the batch's unbiased
    variance, Flax by the biased one, n/(n-1) times smaller for n values a channel.

    Raises UserError for names of both styles or of neither, and for arrays that are missing,
    unknown or of another shape than the rest implies.
    """
    if not isinstance(state_dict, Mapping):
        got = type(state_dict).__name__
        raise UserError(f"Expected a state dict, got {got}; a module's is module.state_dict().")
    arrays = {str(name): a for name, a in state_dict.items() if not str(name).endswith(COUNTER)}
    ours = _checked({name: tuple(np.shape(array)) for name, array in arrays.items()})
    flat = {ours[name]: _array(array, FROM_TORCH) for name, array in arrays.items()}
    return traverse_util.unflatten_dict(flat, sep=".")


def to_torch(variables: Mapping[str, Any], names: Names = "torchvision") -> dict[str, np.ndarray]:
    """The inverse of `from_torch`: float32 numpy arrays by PyTorch's names.

    `variables`: `params` and `batch_stats` of a `ResNet`; blocks may be stacked. `load_state_dict`
    takes the result strictly, its arrays through `torch.from_numpy`. Raises UserError for other
    `names` and for variables that are not those of one whole `ResNet`.
    """
    if names not in MODULES:
        raise UserError(f"Expected names in {get_args(Names)}, got {names!r}.")
    flat = traverse_util.flatten_dict(stacking.unstack(dict(variables)), sep=".")
    theirs = {_theirs(name, names): _array(array, TO_TORCH) for name, array in flat.items()}
    _checked({name: array.shape for name, array in theirs.items()})
    return theirs


def _array(array: Any, axes: dict[int, Shape]) -> np.ndarray:
    array = np.asarray(array, np.float32)
    return np.array(array.transpose(axes.get(array.ndim)), order="C")


def _theirs(ours: str, names: str) -> str:
    """PyTorch's name of an array of ours; unchanged if it has none."""
    if not (match := OURS.fullmatch(ours)):
        return ours
    s, block, b, module, i, array = match.groups()
    pattern = MODULES[names].get(f"{block}.{module}" if block else module, "")
    if array not in ARRAYS or ("{i" in pattern) != bool(i) or not pattern:
        return ours
    places = {name: int(place or 1) for name, place in (("s", s), ("b", b), ("i", i))}
    before = {f"{name}0": place - 1 for name, place in places.items()}
    return f"{pattern.format(**places, **before)}.{ARRAYS[array]}"


def _checked(shapes: dict[str, Shape]) -> dict[str, str]:
    """Our names by PyTorch's. Raises UserError unless `shapes` are those of one whole `ResNet`."""
    names = "transformers" if any(name.startswith("resnet.") for name in shapes) else "torchvision"
    model, channels = _network(shapes, names)
    variables = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 32, 32, channels)))
    ours = traverse_util.flatten_dict(variables, sep=".")
    expected = {
        _theirs(name, names): tuple(a.shape[i] for i in TO_TORCH.get(a.ndim, range(a.ndim)))
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
    came = [f"{what}: {_some(arrays)}" for what, arrays in differences.items() if arrays]
    if came:
        raise UserError(
            f"Expected the {len(expected)} arrays, by the names of {names}, of a ResNet of"
            f" {model.blocks_per_stage} {model.block.__name__}s with widths {model.widths}, got"
            f" others; {'; '.join(came)}; give the state dict of one whole net."
        )
    return dict(zip(expected, ours, strict=True))


def _network(shapes: dict[str, Shape], names: str) -> tuple[ResNet, int]:
    """The `ResNet` whose arrays have these shapes, by PyTorch's names, and its images' channels."""

    def kernel(module: str, *dimensions: str) -> Shape:
        name = _theirs(f"params.{module}.kernel", names)
        shape = shapes.get(name, ())
        if len(shape) != len(dimensions) or 0 in shape:
            raise UserError(
                f"Expected {name} [{', '.join(dimensions)}], got {list(shape) or 'none'} among"
                f" {len(shapes)} arrays ({_some(list(shapes))}); give the state dict of one whole"
                f" ResNet by the names of {' or '.join(get_args(Names))}, without a prefix."
            )
        return shape

    def has(stage: int, block: int, *modules: str) -> bool:
        ours = (f"params.stage{stage}_block{block}.{module}.kernel" for module in modules)
        return any(_theirs(name, names) in shapes for name in ours)

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
    # Without projections "none" and "pad" have the same arrays.
    shortcut: Shortcut = "projection" if projected else "none"
    if projected - {(stage, 1) for stage in stages if stage > 1 or bottleneck}:
        shortcut = "projection_all"
    block = BottleneckBlock if bottleneck else BasicBlock
    return ResNet(STEMS[stem[2:]], block, counts, widths, fc[0], shortcut), stem[1]


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
