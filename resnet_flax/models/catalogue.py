"""The networks of Table 1 (ImageNet) and Sec. 4.2 (CIFAR), by family and depth."""

from collections.abc import Sequence
from typing import Any, get_args

from resnet_flax.errors import UserError
from resnet_flax.models import blocks
from resnet_flax.models.blocks import Form
from resnet_flax.models.resnet import Family, ResNet, Shortcut

CIFAR_WIDTHS = (16, 32, 64)
IMAGENET_WIDTHS = (64, 128, 256, 512)
# Table 1: the form of the blocks, and their number in each stage.
IMAGENET_NETS: dict[int, tuple[Form, tuple[int, ...]]] = {
    18: ("basic", (2, 2, 2, 2)),
    34: ("basic", (3, 4, 6, 3)),
    50: ("bottleneck", (3, 4, 6, 3)),
    101: ("bottleneck", (3, 4, 23, 3)),
    152: ("bottleneck", (3, 8, 36, 3)),
}


def build_resnet(
    family: Family,
    depth: int,
    shortcut: Shortcut,
    widths: Sequence[int] = (),
    block: str = "postactivation",
    **fields: Any,
) -> ResNet:
    """The network of a family and depth.

    - `widths`: widths of the stages. Empty: those of the paper.
    - `block`: a name in `blocks.BLOCKS`.
    - `fields`: other fields of `ResNet`.

    Raises UserError for another family, and for a depth, a shortcut, widths or a block that the
    family does not have.
    """
    if family not in get_args(Family):
        raise UserError(f"Expected model.family in {get_args(Family)}, got {family!r}.")
    if shortcut not in get_args(Shortcut):
        raise UserError(f"Expected model.shortcut in {get_args(Shortcut)}, got {shortcut!r}.")
    form, counts = _cifar_stages(depth) if family == "cifar" else _imagenet_stages(depth)
    widths = tuple(widths) or (CIFAR_WIDTHS if family == "cifar" else IMAGENET_WIDTHS)
    if len(widths) != len(counts) or min(widths) < 1:
        raise UserError(f"Expected {len(counts)} positive model.widths, got {widths}.")
    if shortcut == "pad" and list(widths) != sorted(widths):
        raise UserError(
            f'Expected model.widths that do not shrink with model.shortcut="pad", got {widths};'
            ' "projection" accepts any widths.'
        )
    net = ResNet(family, blocks.find(block, form), counts, widths, shortcut=shortcut, **fields)
    _check_effects(net, block)
    return net


def _check_effects(net: ResNet, block: str) -> None:
    """Raises UserError for a change of the block or of initial values that would have no effect.

    Also for one that would not have the effect that it stands for.
    """
    is_plain, has_bn = net.shortcut == "none", net.norm == "batch"
    if is_plain and net.shortcut_scale != 1:
        raise UserError(
            'Expected model.shortcut_scale=1 with model.shortcut="none", which has no shortcut to'
            f' scale, got {net.shortcut_scale}; give model.shortcut="pad".'
        )
    if net.bn_bias and not has_bn:
        raise UserError(
            f'Expected model.bn_bias=0 with model.norm="none", got {net.bn_bias}; leave it out.'
        )
    if net.zero_init_residual and (is_plain or not has_bn or not net.block.activated):
        raise UserError(
            'Expected model.zero_init_residual=False, or a shortcut, model.norm="batch" and a'
            " model.block whose F ends with a norm, such as postactivation, got"
            f" shortcut={net.shortcut!r}, norm={net.norm!r} and block={block!r}."
        )
    exact = is_plain and net.stem == "cifar" and not net.negative_slope and not net.bn_bias
    if net.kernel_init == "looks_linear" and not exact:
        raise UserError(
            'Expected model.init="he", or model.family="cifar", model.shortcut="none",'
            " model.negative_slope=0 and model.bn_bias=0, with which a network can be linear, got"
            f" family={net.stem!r}, shortcut={net.shortcut!r}, negative_slope={net.negative_slope}"
            f" and bn_bias={net.bn_bias}."
        )
    are_pairs = list(net.widths) == sorted(net.widths) and not any(w % 2 for w in net.widths)
    if net.kernel_init == "looks_linear" and not are_pairs:
        raise UserError(
            'Expected even model.widths that do not shrink with model.init="looks_linear", got'
            f" {net.widths}."
        )


def _cifar_stages(depth: int) -> tuple[Form, tuple[int, ...]]:
    n, rest = divmod(depth - 2, 6)
    if rest == 0 and n > 0:
        return "basic", (n, n, n)
    below, above = 6 * max(n, 1) + 2, 6 * max(n + 1, 1) + 2
    nearest = f"{below}" if below >= depth else f"{below} and {above}"
    raise UserError(
        f"Expected a depth of 6n+2 (8, 14, 20, ...), got {depth}; the nearest: {nearest}."
    )


def _imagenet_stages(depth: int) -> tuple[Form, tuple[int, ...]]:
    if depth not in IMAGENET_NETS:
        raise UserError(f"Expected an ImageNet depth in {tuple(IMAGENET_NETS)}, got {depth}.")
    return IMAGENET_NETS[depth]
