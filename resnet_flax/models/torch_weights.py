"""Weights from PyTorch and back, by the names of three libraries."""

import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Literal, get_args

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from resnet_flax.errors import UserError, summary
from resnet_flax.models import stacking
from resnet_flax.models.blocks import BottleneckBlock
from resnet_flax.models.resnet import ResNet
from resnet_flax.models.torch_names import TO_TORCH, Names, Shape, name_of, recognise, some

Padding = Literal["end", "both"]
FROM_TORCH = {2: (1, 0), 4: (2, 3, 1, 0)}  # The inverse of TO_TORCH.
COUNTER = ".num_batches_tracked"  # PyTorch reads it only where BN has no momentum.


def from_torch(state_dict: Mapping[str, Any], padding: Padding | None = None) -> dict[str, Any]:
    """The variables of our `ResNet`, as `model.apply` takes them, from a PyTorch state dict.

    `state_dict`: floats that `np.asarray` takes (a tensor on the CPU), by the names of torchvision
    (`layer1.0.conv1.weight`), transformers (`resnet.encoder.stages.0...`) or kuangliu/pytorch-cifar
    (torchvision's, but `linear` and `shortcut.0`). A prefix of all names, such as `module.`, is
    dropped. Returns `params` and `batch_stats`: nested dicts of float32 numpy arrays that share
    no memory with it, kernels [O, I, H, W] as [H, W, I, O], matrices [out, in] as [in, out].

    `padding`: on which side option A, a shortcut without parameters, adds its zero channels.
    `"end"`: behind the others, as here. `"both"`: half before and half behind, as
    akamaster/pytorch_resnet_cifar10; the result has its channels in our order. No array shows which
    is right, so a dict whose widths grow without projections needs it. A plain net's takes either.

    The network that computes the same has the dict's blocks, widths and classes. No array shows the
    rest, so check it in the code that trained the dict:

    - `shortcut`: `"projection"` where there are projections. A dict without them fits `"pad"`
      (option A) and `"none"` (plain).
    - `bottleneck_stride`: `"3x3"` in all three libraries, but `"1x1"` where transformers' config
      has `downsample_in_bottleneck`.
    - `bn_epsilon`: 1e-5, PyTorch's default and ours.
    - Images: ours are (pixel - `image_mean`) / 255. For (pixel / 255 - m) / d let `image_mean` be
      255 m, and divide the first kernel by d: `["params"]["conv"]["kernel"] /= d[:, None]`. That is
      exact, at the borders too.
    - What our `ResNet` lacks: blur or average pools in place of strides, dilation, other strides,
      activations, pools or orders of BN. Of the 81 networks of timm 1.0.31's `resnet.py` these
      have a plain ResNet's arrays and compute something else: `resnetaa50`, `resnetblur18`,
      `resnetblur50`. All others that differ from ours are refused.

    A training step differs in one thing: PyTorch moves the running variance by the batch's unbiased
    variance, Flax by the biased one, n/(n-1) times smaller for n values a channel.

    Raises UserError for names of two libraries or of none, for arrays that are missing, unknown, of
    another shape than the rest implies or not floats, and for a `padding` that is needed or wrong.
    """
    if not isinstance(state_dict, Mapping):
        got = type(state_dict).__name__
        raise UserError(f"Expected a state dict, got {got}; a module's is module.state_dict().")
    arrays = _without_prefix(_floats(state_dict))
    model, ours = recognise(arrays)
    ordered = _permuted(arrays, ours, model, _orders(model, padding))
    flat = {ours[name]: _transposed(array, FROM_TORCH) for name, array in ordered.items()}
    return traverse_util.unflatten_dict(flat, sep=".")


def to_torch(
    variables: Mapping[str, Any], names: Names = "torchvision", padding: Padding | None = None
) -> dict[str, np.ndarray]:
    """The inverse of `from_torch`: float32 numpy arrays by PyTorch's names.

    `variables`: `params` and `batch_stats` of a `ResNet`; blocks may be stacked. `padding`: of the
    PyTorch network that is to take them, as in `from_torch`. `load_state_dict` takes the result
    strictly, its arrays through `torch.from_numpy`. Raises UserError for other `names`, for
    variables that are not those of one whole `ResNet`, and for a `padding` as `from_torch` does.
    """
    if names not in get_args(Names):
        raise UserError(f"Expected names in {get_args(Names)}, got {names!r}.")
    if not isinstance(variables, Mapping):
        got = type(variables).__name__
        raise UserError(
            f"Expected params and batch_stats in a dict, got {got}; a run has .variables."
        )
    flat = _floats(traverse_util.flatten_dict(stacking.unstack(dict(variables)), sep="."))
    theirs = {name_of(name, names): _transposed(array, TO_TORCH) for name, array in flat.items()}
    model, ours = recognise(theirs)
    inverse = [np.argsort(order) for order in _orders(model, padding)]
    return _permuted(theirs, ours, model, inverse)


def _floats(values: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Each array by its name, without PyTorch's counters. Raises UserError for what is no float."""
    if dicts := [str(name) for name, value in values.items() if isinstance(value, Mapping)]:
        raise UserError(
            f"Expected arrays by their names, got a dict of {some([str(n) for n in values])};"
            f" give what it has under one of these names: {some(dicts)}."
        )
    arrays = {}
    for name, value in values.items():
        if str(name).endswith(COUNTER):
            continue
        try:
            array = np.asarray(value)
        except (TypeError, ValueError, RuntimeError) as error:
            got = f"{type(value).__name__} ({summary(error)})"
            raise UserError(
                f"Expected {name} to be an array, got {got}; for a tensor of"
                " floats give tensor.detach().cpu().float()."
            ) from error
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise UserError(
                f"Expected {name} to be floats, got {array.dtype}; give the arrays of a"
                " network that is not quantised, and no other entries."
            )
        arrays[str(name)] = array
    return arrays


def _without_prefix(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Without what DataParallel and other wrappers put before every name."""
    while len({name.partition(".")[0] for name in arrays}) == 1 < len(arrays):
        arrays = {name.partition(".")[2]: array for name, array in arrays.items()}
    return arrays


def _transposed(array: np.ndarray, axes: dict[int, Shape]) -> np.ndarray:
    return np.array(array.transpose(axes.get(array.ndim)), np.float32, order="C")


def _orders(model: ResNet, padding: Padding | None) -> list[np.ndarray]:
    """Where the stem and each stage have our channels in PyTorch's sum of branch and shortcut.

    `"both"` moves what enters a stage behind the first half of the zeros; ours stays in front.
    """
    if padding not in (None, *get_args(Padding)):
        raise UserError(f"Expected padding in {get_args(Padding)}, got {padding!r}.")
    widths = (model.widths[0], *(width * model.block.expansion for width in model.widths))
    orders = [np.arange(width) for width in widths]
    if model.shortcut != "none" or len(set(widths)) == 1 or padding == "end":
        return orders
    if padding is None:
        raise UserError(
            f"Expected padding in {get_args(Padding)} for widths {model.widths} without"
            " projections, got none: no array shows where option A adds zero channels;"
            ' akamaster/pytorch_resnet_cifar10 has "both", this project "end", a plain net either.'
        )
    for stage, (before, after) in enumerate(pairwise(widths), start=1):
        front, odd = divmod(after - before, 2)
        if odd or front < 0:
            raise UserError(
                f'Expected widths that grow by even numbers for padding="both", got {widths};'
                ' "end" takes any.'
            )
        zeros = np.delete(np.arange(after), slice(front, front + before))
        orders[stage] = np.concatenate([orders[stage - 1] + front, zeros])
    return orders


def _permuted(
    theirs: dict[str, np.ndarray], ours: dict[str, str], model: ResNet, orders: list[np.ndarray]
) -> dict[str, np.ndarray]:
    """PyTorch's arrays with the channels of each stage in the order that `orders` has for it."""
    permuted = {}
    for name, array in theirs.items():
        reads, writes = _stages(ours[name], model)
        if writes is not None:
            array = array[orders[writes]]
        if reads is not None and array.ndim > 1:
            array = array[:, orders[reads]]
        permuted[name] = array
    return permuted


def _stages(ours: str, model: ResNet) -> tuple[int | None, int | None]:
    """The stages, 0 for the stem, whose channels an array of ours reads and writes.

    None: channels within a block, or classes. Projections are left out: where there are any, no
    order changes.
    """
    *_, module, _ = path = ours.split(".")  # Such as params.stage2_block1.conv1.kernel.
    if module == "fc":
        return len(model.widths), None
    if len(path) == 3:
        return None, 0
    stage, block = map(int, re.findall(r"\d+", path[1]))
    last = "3" if model.block is BottleneckBlock else "2"
    reads = stage - (block == 1) if module == "conv1" else None
    return reads, stage if module in (f"conv{last}", f"bn{last}") else None
