"""Converts weights from PyTorch and back, with the names of three libraries."""

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

    Both networks have the paper's block, `model.block="postactivation"`.

    `state_dict`: floats that `np.asarray` takes, such as tensors on the CPU. Their names are those
    of one library:

    - torchvision: `layer1.0.conv1.weight`
    - transformers: `resnet.encoder.stages.0...`
    - kuangliu/pytorch-cifar: as torchvision, but `linear` for `fc` and `shortcut.0` for
      `downsample.0`

    If all names have the same prefix, such as `module.`, it is dropped.

    `padding`: where option A, a shortcut without parameters, adds its zero channels. `"end"`: after
    the others, as here. `"both"`: half before and half after, as akamaster/pytorch_resnet_cifar10.
    No array shows which is right. So a dict needs `padding` if its widths grow without projections.
    A plain net's dict takes either value.

    Returns `params` and `batch_stats`: nested dicts of float32 numpy arrays that share no memory
    with `state_dict`. Kernels [O, I, H, W] become [H, W, I, O], matrices [out, in] become
    [in, out]. With `"both"`, channels are put into our order.

    For the same results, build our network with the dict's blocks, widths and classes. No array
    shows the rest. Check it in the code that trained the dict:

    - `shortcut`: `"projection"` if the dict has projections. Without them it fits `"pad"` (option
      A) and `"none"` (plain).
    - `bottleneck_stride`: `"3x3"` in all three libraries. Only if transformers' config has
      `downsample_in_bottleneck`, it is `"1x1"`.
    - `bn_epsilon`: 1e-5, PyTorch's default and ours.
    - Images: our network takes (pixel - `image_mean`) / 255. If theirs takes (pixel / 255 - m) / d,
      set `image_mean` to 255 m and divide the first kernel by d:
      `["params"]["conv"]["kernel"] /= d[:, None]`. That is exact, also at the borders.
    - Our `ResNet` does not have blur or average pools in place of strides, dilation, or other
      strides, activations, pools or orders of BN. Such a network may still have a plain ResNet's
      arrays. Among the 81 networks of timm 1.0.31's `resnet.py` these are `resnetaa50`,
      `resnetblur18` and `resnetblur50`. All other networks there that differ from ours
      raise UserError.

    A training step differs in one way. PyTorch updates the running variance with the unbiased
    variance of the batch, Flax with the biased one. For n values a channel, the biased one is
    n/(n-1) times smaller.

    Raises UserError

    - for names of two libraries or of no library,
    - for arrays that are missing, unknown, not floats, or of a shape that does not fit the others,
    - if `padding` is needed but not given, or is wrong.
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

    - `variables`: `params` and `batch_stats` of a `ResNet`. Blocks may be stacked.
    - `padding`: the padding of the PyTorch network that will load the arrays, as in `from_torch`.

    Pass each array through `torch.from_numpy`; a strict `load_state_dict` then accepts the result.

    Raises UserError for other `names`, and for variables that are not those of one whole `ResNet`
    with `model.block="postactivation"`. `padding` raises as in `from_torch`.
    """
    if names not in get_args(Names):
        raise UserError(f"Expected names in {get_args(Names)}, got {names!r}.")
    if not isinstance(variables, Mapping):
        got = type(variables).__name__
        raise UserError(
            f"Expected params and batch_stats in a dict, got {got}; a run has .variables."
        )
    flat = _floats(traverse_util.flatten_dict(stacking.unstack(dict(variables)), sep="."))
    if nameless := [name for name in flat if name_of(name, names) == name]:
        raise UserError(
            f"Expected variables of a network with model.block='postactivation', as {names} has it,"
            f" got arrays without a name there: {some(nameless)}; to share another network, copy"
            " its run with export_run."
        )
    theirs = {name_of(name, names): _transposed(array, TO_TORCH) for name, array in flat.items()}
    model, ours = recognise(theirs)
    inverse = [np.argsort(order) for order in _orders(model, padding)]
    return _permuted(theirs, ours, model, inverse)


def _floats(values: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The arrays by name, without PyTorch's counters. Raises UserError unless all are floats."""
    if dicts := [str(name) for name, value in values.items() if isinstance(value, Mapping)]:
        raise UserError(
            f"Expected arrays by their names, got a dict of {some([str(n) for n in values])};"
            f" give what is under one of these names: {some(dicts)}."
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
    """Removes the prefix that DataParallel and other wrappers put before every name."""
    while len({name.partition(".")[0] for name in arrays}) == 1 < len(arrays):
        arrays = {name.partition(".")[2]: array for name, array in arrays.items()}
    return arrays


def _transposed(array: np.ndarray, axes: dict[int, Shape]) -> np.ndarray:
    return np.array(array.transpose(axes.get(array.ndim)), np.float32, order="C")


def _orders(model: ResNet, padding: Padding | None) -> list[np.ndarray]:
    """For the stem and each stage, the positions of our channels in PyTorch's order.

    It is the order of channels in the sum of branch and shortcut. With `"both"`, the channels that
    enter a stage come after the first half of the zeros. In our order they come first.
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
            " projections, got none: no array shows where option A adds zero channels. Give"
            ' "both" for akamaster/pytorch_resnet_cifar10, "end" for this project, or either for a'
            " plain net."
        )
    for stage, (before, after) in enumerate(pairwise(widths), start=1):
        front, odd = divmod(after - before, 2)
        if odd or front < 0:
            raise UserError(
                f'Expected widths that grow by even numbers for padding="both", got {widths};'
                ' "end" takes any widths.'
            )
        zeros = np.delete(np.arange(after), slice(front, front + before))
        orders[stage] = np.concatenate([orders[stage - 1] + front, zeros])
    return orders


def _permuted(
    theirs: dict[str, np.ndarray], ours: dict[str, str], model: ResNet, orders: list[np.ndarray]
) -> dict[str, np.ndarray]:
    """PyTorch's arrays, with the channels of each stage in the order given by `orders`."""
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
    """The stage whose channels an array reads, and the one whose channels it writes.

    `ours`: our name of the array. 0 is the stem. None means channels inside a block, or classes.
    Projections are ignored, because with projections no order changes.
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
