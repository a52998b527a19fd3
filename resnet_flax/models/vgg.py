"""VGG-16 and VGG-19 (Simonyan and Zisserman 2015, configurations D and E, without BN).

The reference for the complexity in Table 1 and Fig. 3 of He et al. (2015). B, H, W, C: batch,
height, width, channels.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from resnet_flax.errors import UserError
from resnet_flax.models import blocks

WIDTHS = (64, 128, 256, 512, 512)
VGG_NETS: dict[int, tuple[int, ...]] = {16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
HIDDEN = 4096
SMALLEST_IMAGE = 32  # Five max pools leave one pixel.


class MaxPool(nn.Module):
    """2x2 max pooling, stride 2: [B, H, W, C] -> [B, H/2, W/2, C], rounded down."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.max_pool(x, (2, 2), strides=(2, 2))


class VGG(nn.Module):
    """Stages of 3x3 convolutions with biases, a max pool after each stage, three dense layers."""

    convs_per_stage: Sequence[int]
    num_classes: int
    dtype: Any = jnp.float32

    @property
    def part_names(self) -> tuple[str, ...]:
        """The names of its parts, each a `resnet.Part`."""
        return (*(f"stage{i + 1}" for i in range(len(self.convs_per_stage))), "head")

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """`images` [B, H, W, C] float32 -> logits [B, num_classes] float32.

        H and W are at least SMALLEST_IMAGE.
        """
        del train  # No BN. Dropout is left out, because it adds nothing to the complexity.
        x = images
        for stage, (count, width) in enumerate(zip(self.convs_per_stage, WIDTHS, strict=True)):
            for i in range(count):
                name = f"stage{stage + 1}_conv{i + 1}"
                x = blocks.conv(width, 3, dtype=self.dtype, name=name)(x)
                x = blocks.ReLU(name=f"stage{stage + 1}_relu{i + 1}")(x)
            x = MaxPool(name=f"stage{stage + 1}_max_pool")(x)
        x = x.reshape(x.shape[0], -1)
        for name in ("fc1", "fc2"):
            dense = nn.Dense(HIDDEN, kernel_init=blocks.he_normal, dtype=self.dtype, name=name)
            x = blocks.ReLU(name=f"{name}_relu")(dense(x))
        return nn.Dense(self.num_classes, kernel_init=blocks.he_normal, name="fc")(
            x.astype(jnp.float32)
        )


def build_vgg(depth: int, num_classes: int, dtype: Any = jnp.float32) -> VGG:
    """VGG of 16 or 19 weighted layers. Raises UserError for another depth."""
    if depth not in VGG_NETS:
        raise UserError(f"Expected a VGG depth in {tuple(VGG_NETS)}, got {depth}.")
    return VGG(VGG_NETS[depth], num_classes, dtype=dtype)
