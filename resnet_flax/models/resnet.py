"""The plain and residual networks of Table 1 (ImageNet) and Sec. 4.2 (CIFAR).

B, H, W, C: batch, height, width, channels.
"""

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from resnet_flax.models import blocks, looks_linear
from resnet_flax.models.blocks import Block, BlockShortcut, ModuleDef
from resnet_flax.models.stacking import scan_blocks

Family = Literal["cifar", "imagenet"]
Shortcut = Literal["none", "pad", "projection", "projection_all"]
Norm = Literal["batch", "none"]
Init = Literal["he", "looks_linear"]
STEM = ("conv", "bn", "relu", "max_pool")
Part = Literal["stem", "stage1", "stage2", "stage3", "stage4", "stage5", "head"]
"""A part of a network. Only VGG has a stage 5, and it has no stem."""


@cache
def _partial(make: ModuleDef, **fields: Any) -> ModuleDef:
    """A partial, and the same object for the same fields: two partials are never equal."""
    return partial(make, **fields)


@cache
def _constant(value: float) -> Callable[..., Any]:
    """As `_partial`: the same object for the same value."""
    return nn.initializers.constant(value)


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
    - `shortcut_scale`, `zero_init_residual`: as in `blocks.Block`.
    - `negative_slope`: of leaky ReLU; 0 is ReLU.
    - `kernel_init`: `"he"`, or `"looks_linear"`, see `looks_linear.py`.
    - `bn_bias`: what every bias of BN is at first.
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
    shortcut_scale: float = 1.0
    zero_init_residual: bool = False
    negative_slope: float = 0.0
    kernel_init: Init = "he"
    bn_bias: float = 0.0
    bottleneck_stride: Literal["1x1", "3x3"] = "1x1"
    norm: Norm = "batch"
    bn_momentum: float = 0.9
    bn_epsilon: float = 1e-5
    norm_axis: str | None = None
    dtype: Any = jnp.float32
    scan: bool = False
    remat: bool = False
    conv_general_dilated: Callable[..., jax.Array] | None = None

    @property
    def part_names(self) -> tuple[str, ...]:
        """The names of its parts, each a `Part`."""
        return ("stem", *(f"stage{i + 1}" for i in range(len(self.widths))), "head")

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
        first, inner, last = self._initializers()
        conv = _partial(
            blocks.conv,
            kernel_init=inner,
            use_bias=self.norm == "none",
            dtype=self.dtype,
            conv_general_dilated=self.conv_general_dilated,
        )
        norm = self._norm(train)
        relu = _partial(blocks.ReLU, negative_slope=self.negative_slope)
        imagenet = self.stem == "imagenet"
        kernel, stride = (7, 2) if imagenet else (3, 1)
        parts: list[Callable[[jax.Array], jax.Array]] = [
            conv(self.widths[0], kernel, stride, kernel_init=first, name="conv"),
        ]
        if self.block.activated:
            parts += [norm(name="bn"), relu(name="relu")]
        if imagenet:
            parts.append(MaxPool(name="max_pool"))
        for stage in range(len(self.widths)):
            parts += self._stage(stage, conv, norm, relu)
        if not self.block.activated:
            parts += [norm(name="bn_out"), relu(name="relu_out")]
        return [
            *parts,
            GlobalAveragePool(name="global_average_pool"),
            nn.Dense(self.num_classes, kernel_init=last, name="fc"),
        ]

    @nn.nowrap
    def _initializers(self) -> tuple[Callable[..., jax.Array], ...]:
        """Of the kernels of the first, the inner and the last layer."""
        if self.kernel_init == "looks_linear":
            return looks_linear.first, looks_linear.inner, looks_linear.last
        return (blocks.he_normal,) * 3

    @nn.nowrap
    def _norm(self, train: bool) -> ModuleDef:
        if self.norm == "none":
            return blocks.Identity
        bias = {"bias_init": _constant(self.bn_bias)} if self.bn_bias else {}
        return _partial(
            nn.BatchNorm,
            use_running_average=not train,
            momentum=self.bn_momentum,
            epsilon=self.bn_epsilon,
            axis_name=self.norm_axis,
            dtype=self.dtype,
            **bias,
        )

    @nn.nowrap
    def _stage(
        self, stage: int, conv: ModuleDef, norm: ModuleDef, relu: ModuleDef
    ) -> list[Callable[[jax.Array], jax.Array]]:
        count = self.blocks_per_stage[stage]
        block = partial(
            # In a loop, XLA cannot merge the two computations of a block. It may merge those of a
            # stage's first block, which is in no loop: then that one is not recomputed.
            nn.remat(self.block, prevent_cse=not self.scan) if self.remat else self.block,
            features=self.widths[stage],
            stride_at=self.bottleneck_stride,
            shortcut_scale=self.shortcut_scale,
            zero_init_residual=self.zero_init_residual,
            conv=conv,
            norm=norm,
            relu=relu,
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


def part_of(name: str) -> Part:
    """The part of a network to which a module of it belongs, by the module's name."""
    if name.startswith("stage"):
        part: Any = name.split("_")[0]
        return part
    return "stem" if name in STEM else "head"
