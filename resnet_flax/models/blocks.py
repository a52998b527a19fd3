"""The building block of Eqn. (1), y = relu(F(x) + h(x)), and its plain twin, y = relu(F(x)).

B, H, W, C: batch, height, width, channels. Every part is a module. So each part has a name in the
layer table, in checkpoints and in interceptors.
"""

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

ModuleDef = Callable[..., nn.Module]
BlockShortcut = Literal["none", "pad", "projection"]

# He et al. (2015b), arXiv 1502.01852, Eqn. (10): Gaussian with variance 2 / fan-in.
he_normal = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


def conv(features: int, kernel: int, stride: int = 1, **kwargs: Any) -> nn.Conv:
    """A square convolution: [B, H, W, C] -> [B, H/stride, W/stride, features], sizes rounded up."""
    return nn.Conv(
        features,
        kernel_size=(kernel, kernel),
        strides=stride,
        padding=kernel // 2,  # not "SAME": at stride 2, XLA's SAME pads one side only.
        kernel_init=he_normal,
        **kwargs,
    )


class ReLU(nn.Module):
    """max(x, 0), any shape."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.relu(x)


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
    """Base class of the two blocks: their fields, and the addition of h(x) in Eqn. (1).

    - `features`: width of the 3x3 convolutions. The output has `features * expansion` channels.
    - `stride`: 2 in the first block of a stage that halves its maps, otherwise 1.
    - `shortcut`: h of Eqn. (1). `"pad"` is option A, the identity if the shape does not change.
      `"projection"` is a 1x1 convolution and BN. `"none"` means no h, as in a plain net.
    - `conv`, `norm`: functions that make a convolution (as `conv` above) and a normalisation. Both
      take a `name`.
    """

    features: int
    stride: int
    shortcut: BlockShortcut
    conv: ModuleDef
    norm: ModuleDef
    expansion: ClassVar[int] = 1

    def add_shortcut_and_relu(self, f: jax.Array, x: jax.Array) -> jax.Array:
        """relu(f + h(x)), or relu(f) in a plain net; f = F(x)."""
        relu = ReLU(name="relu_out")
        if self.shortcut == "none":
            return relu(f)
        if self.shortcut == "pad":
            return relu(f + zero_pad_shortcut(x, f.shape[-1], self.stride))
        h = self.conv(f.shape[-1], 1, self.stride, name="shortcut_conv")(x)
        return relu(f + self.norm(name="shortcut_bn")(h))


class BasicBlock(Block):
    """The block of Fig. 5, left. F is conv-BN-relu-conv-BN; both convolutions are 3x3.

    [B, H, W, C] -> [B, H/stride, W/stride, features]. The zero-padded shortcut has no parameters.
    So the plain block and the residual block have the same parameter tree, and differ only by the
    addition.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        f = self.conv(self.features, 3, self.stride, name="conv1")(x)
        f = self.norm(name="bn1")(f)
        f = ReLU(name="relu1")(f)
        f = self.conv(self.features, 3, name="conv2")(f)
        f = self.norm(name="bn2")(f)
        return self.add_shortcut_and_relu(f, x)


class BottleneckBlock(Block):
    """The block of Fig. 5, right. F is 1x1, 3x3, 1x1, each followed by BN.

    [B, H, W, C] -> [B, H/stride, W/stride, 4 features]. The last convolution is four times wider.
    `stride_at`: the convolution that has the stride, `"1x1"` (the first, as in the paper) or
    `"3x3"` (later practice, "v1.5").
    """

    stride_at: Literal["1x1", "3x3"] = "1x1"
    expansion: ClassVar[int] = 4

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        at_1x1 = self.stride_at == "1x1"
        f = self.conv(self.features, 1, self.stride if at_1x1 else 1, name="conv1")(x)
        f = self.norm(name="bn1")(f)
        f = ReLU(name="relu1")(f)
        f = self.conv(self.features, 3, 1 if at_1x1 else self.stride, name="conv2")(f)
        f = self.norm(name="bn2")(f)
        f = ReLU(name="relu2")(f)
        f = self.conv(self.features * self.expansion, 1, name="conv3")(f)
        f = self.norm(name="bn3")(f)
        return self.add_shortcut_and_relu(f, x)
