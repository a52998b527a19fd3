"""The plain and residual networks of Table 1 (ImageNet) and Sec. 4.2 (CIFAR), and their depths.

B, H, W, C: batch, height, width, channels.
"""

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from flax import linen as nn

from resnet_flax.errors import UserError
from resnet_flax.models import blocks
from resnet_flax.models.blocks import Block, BlockShortcut, Form, ModuleDef
from resnet_flax.models.stacking import scan_blocks

Family = Literal["cifar", "imagenet"]
Shortcut = Literal["none", "pad", "projection", "projection_all"]
Norm = Literal["batch", "none"]

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


@cache
def _partial(make: ModuleDef, **fields: Any) -> ModuleDef:
    """A partial, and the same object for the same fields: two partials are never equal."""
    return partial(make, **fields)


class MaxPool(nn.Module):
    """3x3 max pooling, stride 2, padding 1: [B, H, W, C] -> [B, H/2, W/2, C], rounded up."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))


class GlobalAveragePool(nn.Module):
    """The mean over H and W: [B, H, W, C] -> [B, C], always float32."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.mean(x, axis=(1, 2), dtype=jnp.float32)


class ResNet(nn.Module):
    """A stem, stages of blocks, global average pool, fully connected layer.

    Norm and ReLU follow the stem's convolution. With blocks that are not `activated`, they follow
    the last block instead.

    - `stem`: `"cifar"`, a 3x3 convolution; `"imagenet"`, 7x7 at stride 2 and a 3x3 max pool.
    - `block`, `blocks_per_stage`, `widths`: each stage after the first halves the maps in its
      first block.
    - `shortcut`: `"pad"` (option A), `"projection"` (option B: only where a stage changes the
      dimensions), `"projection_all"` (option C), `"none"` (plain).
    - `norm`: `"batch"` is BN. `"none"` is no BN, and a bias in each convolution instead.
    - `norm_axis`: the device axis over which BN computes its statistics. None: each device alone.
    - `dtype`: dtype of the computation. Parameters, statistics and logits are float32.
    - `scan`: whether one loop runs the blocks of a stage after its first, see `stacking.py`.
    - `remat`: whether the backward pass computes the inside of each block again, to save memory.
    - `conv_general_dilated`: a function that replaces XLA's convolution, see `cpu_convolution.py`.
    """

    stem: Family
    block: type[Block]
    blocks_per_stage: Sequence[int]
    widths: Sequence[int]
    num_classes: int
    shortcut: Shortcut = "pad"
    bottleneck_stride: Literal["1x1", "3x3"] = "1x1"
    norm: Norm = "batch"
    bn_momentum: float = 0.9
    bn_epsilon: float = 1e-5
    norm_axis: str | None = None
    dtype: Any = jnp.float32
    scan: bool = False
    remat: bool = False
    conv_general_dilated: Callable[..., jax.Array] | None = None

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """`images` [B, H, W, C] float32, normalised -> logits [B, num_classes] float32.

        With `train`, BN uses the statistics of the batch and updates the running ones. Then call
        `apply` with `mutable=["batch_stats"]`.
        """
        x = images
        for part in self.parts(train):
            x = part(x)
        return x

    @nn.nowrap
    def parts(self, train: bool = False) -> list[Callable[[jax.Array], jax.Array]]:
        """The parts of the network in order: modules and, with `scan`, loops over blocks.

        Outside of `apply` the modules do not belong to the network; each has its own `name`. Two
        modules with equal fields then differ only by name, in networks of any depth.
        """
        conv = _partial(
            blocks.conv,
            use_bias=self.norm == "none",
            dtype=self.dtype,
            conv_general_dilated=self.conv_general_dilated,
        )
        norm = self._norm(train)
        imagenet = self.stem == "imagenet"
        parts: list[Callable[[jax.Array], jax.Array]] = [
            conv(self.widths[0], 7 if imagenet else 3, 2 if imagenet else 1, name="conv"),
        ]
        if self.block.activated:
            parts += [norm(name="bn"), blocks.ReLU(name="relu")]
        if imagenet:
            parts.append(MaxPool(name="max_pool"))
        for stage in range(len(self.widths)):
            parts += self._stage(stage, conv, norm)
        if not self.block.activated:
            parts += [norm(name="bn_out"), blocks.ReLU(name="relu_out")]
        return [
            *parts,
            GlobalAveragePool(name="global_average_pool"),
            nn.Dense(self.num_classes, kernel_init=blocks.he_normal, name="fc"),
        ]

    @nn.nowrap
    def _norm(self, train: bool) -> ModuleDef:
        if self.norm == "none":
            return blocks.Identity
        return _partial(
            nn.BatchNorm,
            use_running_average=not train,
            momentum=self.bn_momentum,
            epsilon=self.bn_epsilon,
            axis_name=self.norm_axis,
            dtype=self.dtype,
        )

    @nn.nowrap
    def _stage(
        self, stage: int, conv: ModuleDef, norm: ModuleDef
    ) -> list[Callable[[jax.Array], jax.Array]]:
        count = self.blocks_per_stage[stage]
        block = partial(
            # In a loop, XLA cannot merge the two computations of a block anyway.
            nn.remat(self.block, prevent_cse=not self.scan) if self.remat else self.block,
            features=self.widths[stage],
            conv=conv,
            norm=norm,
            stride_at=self.bottleneck_stride,
        )
        parts: list[Callable[[jax.Array], jax.Array]] = [
            block(
                stride=2 if stage > 0 and i == 0 else 1,
                shortcut=self._block_shortcut(stage, i),
                name=f"stage{stage + 1}_block{i + 1}",
            )
            for i in range(1 if self.scan else count)
        ]
        if self.scan and count > 1:
            rest = block(
                stride=1,
                shortcut=self._block_shortcut(stage, 1),
                name=f"stage{stage + 1}_blocks",
            )
            parts.append(partial(scan_blocks, rest, length=count - 1))
        return parts

    def _block_shortcut(self, stage: int, i: int) -> BlockShortcut:
        changes_dimensions = i == 0 and (stage > 0 or self.block.expansion > 1)
        if self.shortcut == "projection_all":
            return "projection"
        if self.shortcut == "projection" and not changes_dimensions:
            return "pad"
        return self.shortcut


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

    Raises UserError for a depth, a shortcut, widths or a block that the family does not have.
    """
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
    return ResNet(family, blocks.find(block, form), counts, widths, shortcut=shortcut, **fields)


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
