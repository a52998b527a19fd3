"""The building block of Eqn. (1), y = relu(F(x) + h(x)), and its plain twin, y = relu(F(x)).

`BLOCKS`, near the end of this file, has every block that a config can name.

B, H, W, C: batch, height, width, channels. Every part is a module. So each part has a name in the
layer table, in checkpoints and in interceptors.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from resnet_flax.errors import UserError

ModuleDef = Callable[..., nn.Module]
BlockShortcut = Literal["none", "pad", "projection"]
Form = Literal["basic", "bottleneck"]

# He et al. (2015b), arXiv 1502.01852, Eqn. (10): Gaussian with variance 2 / fan-in.
he_normal = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


def conv(
    features: int,
    kernel: int,
    stride: int = 1,
    kernel_init: nn.initializers.Initializer = he_normal,
    **kwargs: Any,
) -> nn.Conv:
    """A square convolution: [B, H, W, C] -> [B, H/stride, W/stride, features], sizes rounded up."""
    return nn.Conv(
        features,
        kernel_size=(kernel, kernel),
        strides=stride,
        padding=kernel // 2,  # not "SAME": at stride 2, XLA's SAME pads one side only.
        kernel_init=kernel_init,
        **kwargs,
    )


class ReLU(nn.Module):
    """max(x, 0), any shape. With a `negative_slope` a, leaky ReLU: x where x > 0, otherwise a x."""

    negative_slope: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.leaky_relu(x, self.negative_slope) if self.negative_slope else nn.relu(x)


class Identity(nn.Module):
    """x, any shape. Takes the place of BN in networks without BN."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return x


def zero_pad_shortcut(x: jax.Array, features: int, stride: int) -> jax.Array:
    """Option A of Sec. 3.3: [B, H, W, C] -> [B, H/stride, W/stride, features], sizes rounded up.

    With `stride` 1 and `features` C it is the identity. Raises ValueError if `features` < C.
    """
    if features < x.shape[-1]:
        raise ValueError(f"Cannot drop channels: got {x.shape=} and {features=}.")
    x = x[:, ::stride, ::stride, :]
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, features - x.shape[-1])))


class Block(nn.Module):
    """Base class of blocks: their fields, and all that the rest of the project asks of a block.

    - `features`: width of the 3x3 convolutions. The output has `features * expansion` channels.
    - `stride`: 2 in the first block of a stage that halves its maps, otherwise 1.
    - `shortcut`: h of Eqn. (1). `"pad"` is option A, the identity if the shape does not change.
      `"projection"` is a 1x1 convolution with the stride. `"none"` means no h, as in a plain net.
    - `conv`, `norm`, `relu`: functions that make a convolution (as `conv` above), a normalisation
      and an activation. All take a `name`.
    - `stride_at`: the convolution of a bottleneck that has the stride, `"1x1"` (the first, as in
      the paper) or `"3x3"` (later practice, "v1.5").
    - `shortcut_scale`: a factor of h. 1 in the paper.
    - `zero_init_residual`: whether the scale of F's last norm is 0 at first, and so F.

    A subclass defines what `CONTRACT` lists. Parameters, multiply-adds, gradients and responses
    are read from what it computes. So it declares nothing else.
    """

    features: int
    stride: int
    shortcut: BlockShortcut
    conv: ModuleDef
    norm: ModuleDef
    relu: ModuleDef = ReLU
    stride_at: Literal["1x1", "3x3"] = "1x1"
    shortcut_scale: float = 1.0
    zero_init_residual: bool = False
    expansion: ClassVar[int]
    """Channels of the output for each of `features`."""
    activated: ClassVar[bool]
    """Whether the output has passed the norm and ReLU. If not, the network moves those of its stem
    to its end, before the pool."""

    @property
    def strides(self) -> tuple[int, int]:
        """The strides of a bottleneck's first two convolutions, 1x1 and 3x3."""
        return (self.stride, 1) if self.stride_at == "1x1" else (1, self.stride)

    @property
    def last_norm(self) -> ModuleDef:
        """Makes the norm at the end of F."""
        if self.zero_init_residual:
            return partial(self.norm, scale_init=nn.initializers.zeros)
        return self.norm

    def residual(self, x: jax.Array) -> jax.Array:
        """F of Eqn. (1). `__call__` calls it, and diagnostics tell F from h by it."""
        raise NotImplementedError

    def project(self, x: jax.Array, features: int) -> jax.Array:
        """W_s x of Eqn. (2): [B, H, W, C] -> [B, H/stride, W/stride, features]."""
        return self.conv(features, 1, self.stride, name="shortcut_conv")(x)

    def add_shortcut(self, f: jax.Array, x: jax.Array, u: jax.Array | None = None) -> jax.Array:
        """f + h(x), or f in a plain net; f = F(x). A projection reads `u` if it is given."""
        if self.shortcut == "none":
            return f
        if self.shortcut == "pad":
            h = zero_pad_shortcut(x, f.shape[-1], self.stride)
        else:
            h = self.project(x if u is None else u, f.shape[-1])
        return f + (h if self.shortcut_scale == 1 else self.shortcut_scale * h)


CONTRACT = ("expansion", "activated", "residual", "__call__")


class PostactivationBlock(Block):
    """Eqn. (1): y = relu(F(x) + h(x)). The plain net omits h: y = relu(F(x)).

    [B, H, W, C] -> [B, H/stride, W/stride, features * expansion]. BN follows each convolution, also
    that of h. The zero-padded shortcut has no parameters. So the plain block and the residual block
    have the same parameter tree, and differ only by the addition.
    """

    activated = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return self.relu(name="relu_out")(self.add_shortcut(self.residual(x), x))

    def project(self, x: jax.Array, features: int) -> jax.Array:
        return self.norm(name="shortcut_bn")(super().project(x, features))


class BasicBlock(PostactivationBlock):
    """The block of Fig. 5, left. F is conv-BN-relu-conv-BN; both convolutions are 3x3."""

    expansion = 1

    def residual(self, x: jax.Array) -> jax.Array:
        f = self.conv(self.features, 3, self.stride, name="conv1")(x)
        f = self.norm(name="bn1")(f)
        f = self.relu(name="relu1")(f)
        f = self.conv(self.features, 3, name="conv2")(f)
        return self.last_norm(name="bn2")(f)


class BottleneckBlock(PostactivationBlock):
    """The block of Fig. 5, right. F is 1x1, 3x3, 1x1, each followed by BN.

    The last convolution is four times wider.
    """

    expansion = 4

    def residual(self, x: jax.Array) -> jax.Array:
        f = self.conv(self.features, 1, self.strides[0], name="conv1")(x)
        f = self.norm(name="bn1")(f)
        f = self.relu(name="relu1")(f)
        f = self.conv(self.features, 3, self.strides[1], name="conv2")(f)
        f = self.norm(name="bn2")(f)
        f = self.relu(name="relu2")(f)
        f = self.conv(self.features * self.expansion, 1, name="conv3")(f)
        return self.last_norm(name="bn3")(f)


class PreactivationBlock(Block):
    """Eqn. (1) of He et al. (2016), arXiv 1603.05027: y = F(x) + h(x); F begins with BN and ReLU.

    A projection reads relu(BN(x)) and has no BN, as in KaimingHe/resnet-1k-layers. "pad" reads x,
    also in the first block. There, their paper (appendix) applies BN and ReLU before both paths.
    """

    activated = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        u = self.relu(name="relu1")(self.norm(name="bn1")(x))
        return self.add_shortcut(self.residual(u), x, u)


class PreactBasicBlock(PreactivationBlock):
    """F is BN-relu-conv-BN-relu-conv; both convolutions are 3x3."""

    expansion = 1

    def residual(self, x: jax.Array) -> jax.Array:
        f = self.conv(self.features, 3, self.stride, name="conv1")(x)
        f = self.relu(name="relu2")(self.norm(name="bn2")(f))
        return self.conv(self.features, 3, name="conv2")(f)


class PreactBottleneckBlock(PreactivationBlock):
    """F is 1x1, 3x3, 1x1, each after BN and ReLU."""

    expansion = 4

    def residual(self, x: jax.Array) -> jax.Array:
        f = self.conv(self.features, 1, self.strides[0], name="conv1")(x)
        f = self.relu(name="relu2")(self.norm(name="bn2")(f))
        f = self.conv(self.features, 3, self.strides[1], name="conv2")(f)
        f = self.relu(name="relu3")(self.norm(name="bn3")(f))
        return self.conv(self.features * self.expansion, 1, name="conv3")(f)


BLOCKS: dict[str, dict[Form, type[Block]]] = {
    "postactivation": {"basic": BasicBlock, "bottleneck": BottleneckBlock},
    "preactivation": {"basic": PreactBasicBlock, "bottleneck": PreactBottleneckBlock},
}
"""The names that `model.block` accepts, and the classes of their forms. Depth selects the form."""


def find(name: str, form: Form) -> type[Block]:
    """The class of a block in one form.

    Raises UserError if the block or the form is missing, or if the class does not extend `Block` or
    lacks part of `CONTRACT`.
    """
    having = tuple(other for other, forms in BLOCKS.items() if form in forms)
    if name not in having:
        raise UserError(
            f"Expected model.block in {having} for a depth with {form} blocks, got {name!r}."
        )
    block = BLOCKS[name][form]
    if not issubclass(block, Block):
        raise UserError(
            f"Expected block {name!r} to extend {Block.__name__} of {Block.__module__}, as"
            f" {BasicBlock.__name__} does, got {block.__name__}."
        )
    own = block.__mro__[: block.__mro__.index(Block)]
    missing = [part for part in CONTRACT if not any(part in vars(owner) for owner in own)]
    if missing:
        raise UserError(
            f"Expected block {name!r} to define {', '.join(CONTRACT)}, got {block.__name__} without"
            f" {', '.join(missing)}; give them, as {BasicBlock.__name__} does in"
            f" {BasicBlock.__module__}."
        )
    return block
