"""Turns a model's config into its network, or raises a one-line error that says what is wrong."""

from collections.abc import Sequence

import jax.numpy as jnp

from resnet_flax.config import ModelConfig, RunConfig
from resnet_flax.errors import UserError
from resnet_flax.models import vgg
from resnet_flax.models.catalogue import build_resnet
from resnet_flax.models.cpu_convolution import conv_general_dilated
from resnet_flax.models.resnet import ResNet
from resnet_flax.runtime.parallel import DATA_AXIS

# With `model.scan="auto"`, CIFAR networks deeper than this are scanned: see
# experiments/results/benchmarks. Those of ImageNet have at most 50 blocks, and scanned take three
# times the memory: see experiments/results/accelerators.md.
DEEPEST_UNROLLED = 110
# What a config of VGG may have in fields of other networks.
WITHOUT_BLOCKS = {
    "shortcut": ("none",),
    "widths": ((),),
    "block": ("postactivation",),
    "scan": ("auto", "off"),
    "remat": (False,),
    "shortcut_scale": (1.0,),
    "zero_init_residual": (False,),
    "negative_slope": (0.0,),
    "init": ("he",),
    "bn_bias": (0.0,),
    "bn_scope": ("device",),
    "norm": ("batch",),
    "bottleneck_stride": ("1x1",),
}


def build_model(
    config: ModelConfig, num_classes: int, platform: str | None = None
) -> ResNet | vgg.VGG:
    """The network of a config. Raises UserError if its family has no such network.

    `platform`: that of the devices that will run it, which is not always this machine's. None: it
    will not run, only shapes and names are wanted.
    """
    dtype = jnp.dtype(config.dtype)
    if config.family == "vgg":
        for name, expected in WITHOUT_BLOCKS.items():
            if (got := getattr(config, name)) not in expected:
                raise UserError(
                    f"Expected model.{name} in {expected} for VGG, which has no blocks and no BN,"
                    f" got {got!r}; give that, or another model.family."
                )
        return vgg.build_vgg(config.depth, num_classes, dtype)
    return build_resnet(
        config.family,
        config.depth,
        config.shortcut,
        config.widths,
        config.block,
        num_classes=num_classes,
        shortcut_scale=config.shortcut_scale,
        zero_init_residual=config.zero_init_residual,
        negative_slope=config.negative_slope,
        kernel_init=config.init,
        bn_bias=config.bn_bias,
        bottleneck_stride=config.bottleneck_stride,
        norm=config.norm,
        bn_momentum=config.bn_momentum,
        bn_epsilon=config.bn_epsilon,
        norm_axis=DATA_AXIS if config.bn_scope == "global" else None,
        dtype=dtype,
        scan=scans(config),
        remat=config.remat,
        conv_general_dilated=conv_general_dilated if platform == "cpu" else None,
    )


def twin_of(config: RunConfig) -> ModelConfig | None:
    """The network of `optim.norms_of`. None if the config names none.

    Raises UserError if the two networks have different parameters.
    """
    model, shortcut = config.model, config.optim.norms_of
    if not shortcut:
        return None
    if model.family == "vgg":
        raise UserError(
            f'Expected optim.norms_of="" for VGG, which has no shortcuts, got {shortcut!r}.'
        )
    if model.shortcut not in ("none", "pad") or model.shortcut == shortcut:
        raise UserError(
            'Expected optim.norms_of="" or model.shortcut in ("none", "pad") and another of the two'
            f" in optim.norms_of, got model.shortcut={model.shortcut!r} and {shortcut!r}."
        )
    # The twin takes its parameters from this network, so it needs no initial values.
    twin = {"shortcut": shortcut, "shortcut_scale": 1.0, "init": "he"}
    if model.zero_init_residual:
        raise UserError(
            f"Expected model.zero_init_residual=False with optim.norms_of={shortcut!r}, got True:"
            " some gradients are 0 at first."
        )
    return model.model_copy(update=twin)


def scans(config: ModelConfig) -> bool:
    """Whether a config asks for a network with stacked blocks."""
    if config.scan == "auto":
        return config.family == "cifar" and config.depth > DEEPEST_UNROLLED
    return config.scan == "on"


def check_image_shape(config: ModelConfig, shape: Sequence[int]) -> None:
    """Raises UserError if the network cannot take images of shape (H, W, C)."""
    if config.family == "vgg" and min(shape[:2]) < vgg.SMALLEST_IMAGE:
        raise UserError(
            f"Expected images of at least {vgg.SMALLEST_IMAGE} pixels a side for VGG, got"
            f" {tuple(shape)}."
        )
